"""The challenge's sockets: where a case lies in `/input` and where each result goes in `/output`."""

SWEEP_SLUG = "stacked-fetal-ultrasound"
SEGMENTATION_SLUG = "fetal-abdomen-segmentation"
FRAME_NUMBER_SLUG = "fetal-abdomen-frame-number"

SWEEP_FOLDER = f"images/{SWEEP_SLUG}"
SEGMENTATION_FILE = f"images/{SEGMENTATION_SLUG}/output.mha"
FRAME_NUMBER_FILE = f"{FRAME_NUMBER_SLUG}.json"
# Ours, beside the two sockets: the platform ignores them, our evaluation reads the first.
SCORES_FILE = "frame-quality-scores.json"
CIRCUMFERENCE_FILE = "fetal-abdominal-circumference.json"

NO_FRAME = -1
"""The frame number that says "no suitable frame"."""
