"""The decoupled filter: public function, registration, CPU path and Triton kernels."""
