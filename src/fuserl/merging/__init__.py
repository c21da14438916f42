"""One model from several that share a shape: VaRM and SCE, and the methods of mergekit, streamed from folder to folder."""
