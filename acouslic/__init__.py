"""What the ACOUSLIC-AI challenge defines: sockets, geometry, image files, field of view, ellipse. Never torch."""

__version__ = "0.2.0"
