"""What a scanner exports: DICOM, cine video, folders of pictures.

In: the path of a file or of a folder that is one case. Out: as from `acouslic.reading`, with the sweeps where files
tell them apart. May use `acouslic.reading` and the modules that it may use.
"""
