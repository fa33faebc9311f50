//! Hypercalls and run-time services of any bytes: the stored corpora of the fuzz targets, and what grows out of
//! them.

mod exercise;
mod replay;
