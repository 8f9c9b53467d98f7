//! The `reload` command, which requests a handoff and reports the outcome as text and as the exit
//! code.

use std::path::PathBuf;

use handoffd::control::{Control, ReloadOptions};

use crate::failure::Failure;
use crate::output::print;

/// Requests a handoff and waits for its outcome.
pub(crate) fn run(control: PathBuf, options: &ReloadOptions) -> Result<(), Failure> {
    let mut printed = Ok(());
    Control::at(control).reload(options, |news| {
        if printed.is_ok() {
            printed = print("the outcome of the reload, which has succeeded", &format!("{news}\n"));
        }
    })?;
    // Return a write error only after the handoff is over, because a command that cannot print must
    // still wait for the outcome.
    printed
}
