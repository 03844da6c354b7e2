"""cgd: distil several heavy image-retrieval networks into one light network, offline."""
