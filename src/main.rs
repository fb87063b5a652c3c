//! The `fusebox` program: everything it does is in the library.

use std::process::ExitCode;

/// A request makes and frees some thirty pieces of memory, some of them freed by another thread (observations): that
/// costs a third of what it does with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fusebox::cli::main()
}
