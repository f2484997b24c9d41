// Exists so that the precompiled headers of gRPC and of our services belong to a target.
