"""The backend on an NVIDIA GPU by torch: no export, no compiling, any build or checkpoint."""
