"""cgd: distil several heavy image-retrieval networks into one light network, offline."""

from cgd.errors import CgdError
from cgd.store.feature_store import FeatureStore

__all__ = ["CgdError", "FeatureStore"]
