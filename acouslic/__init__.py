"""What the ACOUSLIC-AI challenge defines: sockets, geometry, images, field of view, ellipse, pages. Never torch."""

__version__ = "0.2.0"
