"""Errors of bundles, backbones and single items; all are `QuorumError`s, so that every layer can show them.

QuorumError
└── BundleError            422  invalid_bundle       base: a bundle that cannot be used, and why
    ├── BundleCorrupt      422  bundle_corrupt       a hash, a size or a file is not what the manifest says
    ├── BundleFromFuture   422  bundle_from_future   a schema version newer than this code
    ├── HeadMissing        422  head_missing         a member without a trained head
    ├── BackboneMismatch   422  backbone_mismatch    the backbone's weights are not those it was trained on
    ├── BackboneNotFound   422  backbone_not_found   source unknown, or a package or hub is out of reach
    ├── Unsupported        422  unsupported          a model or adapter that would not be exact here
    ├── SelfTestFailed     422  self_test_failed     loaded, but its golden scores do not come out
    └── CalibrationFailed  422  calibration_failed   held-out scores from which no calibration follows
ContestantsDisagree        500  contestants_disagree a benchmark's contestants do not compute the same scores
PeerFailed                 500  peer_failed         what a benchmark compares with did not start, or died
"""

from __future__ import annotations

from quorum_client.errors import QuorumError


class BundleError(QuorumError):
    """A bundle, backbone or adapter that cannot be used; the message names the file and the reason."""

    code = "invalid_bundle"
    status = 422


class BundleCorrupt(BundleError):
    """A file is missing, extra, changed or in a forbidden format."""

    code = "bundle_corrupt"


class BundleFromFuture(BundleError):
    """The manifest's schema version is newer than this code knows."""

    code = "bundle_from_future"


class HeadMissing(BundleError):
    """A member without a trained head: its scores would be random."""

    code = "head_missing"


class BackboneMismatch(BundleError):
    """The backbone's weights differ from those that the members were trained on."""

    code = "backbone_mismatch"


class BackboneNotFound(BundleError):
    """The backbone's source cannot be resolved here."""

    code = "backbone_not_found"


class Unsupported(BundleError):
    """An architecture or adapter type that cannot be scored exactly."""

    code = "unsupported"


class SelfTestFailed(BundleError):
    """The loaded model does not reproduce the scores that the bundle says it gives."""

    code = "self_test_failed"


class CalibrationFailed(BundleError):
    """No scale or temperature follows from these scores: they are not finite, all equal, or there are none."""

    code = "calibration_failed"


class ContestantsDisagree(QuorumError):
    """Contestants of a benchmark whose scores differ by more than rounding: their times are not reported."""

    code = "contestants_disagree"


class PeerFailed(QuorumError):
    """What a benchmark compares with did not start, died, or did not answer; the message holds its last words."""

    code = "peer_failed"


class ItemRejected(QuorumError):
    """One item cannot be scored (empty text, lone surrogate, over-long); its neighbours still can.

    Args:
        code: becomes the item's error code on the wire.
        message: what is wrong with the item; holds none of its text.
    """

    status = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
