"""DICOM SEG: a mask as the archive of the scan's own series takes it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from penn_jax.data.dicom import series_headers
from penn_jax.types import InputError

_SCHEME = "99PENN"
"""Of the codes for the labels of a run: names beginning with 99 are anybody's own."""
_LONGEST_NAME = 64
"""Letters of a label that DICOM keeps."""
_SERIES_NUMBER = 900
"""Far from the numbers that scanners give."""
_NEEDED = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_WHOSE = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""Whose scan it is: repeated as the series has it, or empty."""


def write_segmentation(
    path: Path,
    classes: UInt8[np.ndarray, "X Y Z"],
    labels: Sequence[str],
    series: Path,
    model: str,
) -> None:
    """Write a mask as a DICOM SEG on its series' slices and frame of reference, whole or not.

    Args:
        path: ends in ``.dcm``.
        classes: 0 is background; on the grid of the series as ``read_series`` gives it.
        labels: names of the classes 1, 2, …, which become the segments of these numbers.
        series: folder of the scan.
        model: what found the segments, for the algorithm's identification.

    Raises:
        InputError: the series lacks what a segmentation object must repeat of it.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    version = metadata.version("penn-jax")
    headers = series_headers(series)
    for header in headers:
        # Labels are of any script: the object is UTF-8 whatever the series is.
        header.decode()
        header.SpecificCharacterSet = "ISO_IR 192"
        if lacking := [keyword for keyword in _NEEDED if not header.get(keyword)]:
            wrong = f"a slice of it has no {lacking[0]}"
            remedy = "leave out --dicom-seg, or export the original slices"
            raise InputError(series, wrong, "slices that can be referred to", remedy)
    whose = [copy.deepcopy(headers[0][keyword]) for keyword in _WHOSE if keyword in headers[0]]
    for header in headers:
        # highdicom refuses or warns of names and dates that do not conform, and quotes them.
        for keyword in _WHOSE:
            setattr(header, keyword, "")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model[:_LONGEST_NAME],
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        source="penn_jax",
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:_LONGEST_NAME],
            segmented_property_category=codes.SCT.BodyStructure,
            segmented_property_type=hd.sr.CodedConcept(str(number), _SCHEME, name[:_LONGEST_NAME]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(labels, start=1)
    ]
    try:
        made = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=np.ascontiguousarray(classes.transpose(2, 1, 0)),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            series_description="penn_jax",
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="penn_jax",
            manufacturer_model_name="penn predict",
            software_versions=version,
            device_serial_number="0",
            # Of a mask without any voxel the empty frames are all there is.
            omit_empty_frames=bool(classes.any()),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Its words may quote the patient's.
        wrong = f"no segmentation object can be made of it ({type(error).__name__})"
        expected = "the patient's, study's and series' attributes that DICOM asks for"
        raise InputError(series, wrong, expected, "leave out --dicom-seg") from None
    for element in whose:
        made.add(element)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        made.save_as(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
