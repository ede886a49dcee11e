//! End-to-end tests of the products; each product has one test binary.
