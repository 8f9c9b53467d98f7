//! The `reload` command: requests a handoff, and reports its outcome as text and as the exit code.

use std::path::PathBuf;

use handoffd::control::{Control, ReloadNews, ReloadOptions};

use crate::failure::Failure;
use crate::output::print;

/// Requests a handoff and waits for its outcome.
pub(crate) fn run(control: PathBuf, options: &ReloadOptions) -> Result<(), Failure> {
    let mut printed = Ok(());
    Control::at(control).reload(options, |news| {
        if printed.is_ok() {
            printed =
                print("the outcome of the reload, which has succeeded", &(tell(&news) + "\n"));
        }
    })?;
    // Return a write error only now, after the handoff is over. A command that cannot print must
    // still wait for the outcome.
    printed
}

fn tell(news: &ReloadNews) -> String {
    match news {
        ReloadNews::Serving { generation, pid, after, draining } => {
            let mut text = format!("generation {generation} serves");
            if let Some(pid) = pid {
                text += &format!(", process {pid}");
            }
            if let Some(after) = after {
                text += &format!(", after {:.3} s", after.as_secs_f64());
            }
            if let Some(draining) = draining {
                text += &format!("; connections left: {draining}");
            }
            text
        }
        ReloadNews::Drained { generation, ended, carried, cut } => {
            format!(
                "generation {generation} has drained; connections that ended: {ended}, that were \
                carried: {carried}, that were cut: {cut}"
            )
        }
    }
}
