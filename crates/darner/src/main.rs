//! The darner command.

use std::process::ExitCode;

fn main() -> ExitCode {
    darner::cmd::main()
}
