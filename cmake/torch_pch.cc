// Exists so that the precompiled libtorch headers belong to a target.
