"""Block-scaled number formats, occupancy and measurement for GPU kernels: the code behind the book."""
