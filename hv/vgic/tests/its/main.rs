//! The guest's ITS, driven as a guest drives it.

mod commands;
mod rig;
