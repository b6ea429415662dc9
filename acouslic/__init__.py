"""What the ACOUSLIC-AI challenge defines: sockets, geometry, image files, field of view, ellipse. Never imports torch."""

__version__ = "0.1.0"
