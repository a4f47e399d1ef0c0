//! The whole server with the scripted engine, over real sockets.

mod admission;
mod binary;
mod faults;
mod harness;
mod life;
mod observe;
mod requests;
mod security;
