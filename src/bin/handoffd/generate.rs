//! The commands `completions` and `man`, which generate shell completions and man pages from the
//! definitions of the flags.
//!
//! The output is generated on demand, so it always matches the program that prints it.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::failure::Failure;
use crate::output::print;

/// Prints the completions of all commands and flags for `shell`.
pub(crate) fn completions(shell: Shell, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print("the completions", &String::from_utf8_lossy(&script))
}

/// Writes one man page for each command into `directory`, which must exist.
pub(crate) fn man_pages(directory: &Path, mut command: Command) -> Result<(), Failure> {
    command.build();
    write_pages(directory, &command)
}

fn write_pages(directory: &Path, command: &Command) -> Result<(), Failure> {
    for subcommand in command.get_subcommands() {
        write_pages(directory, subcommand)?;
    }
    let source = concat!("handoffd ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("handoffd");
    let path = directory.join(man.get_filename());
    let written = page(&man, command).and_then(|text| fs::write(&path, text));
    written.map_err(|source| Failure::Output { what: format!("the man page {path:?}"), source })
}

/// Returns the text of one man page. `Man::render` is not suitable, because it joins the lines of
/// the tables at the end of `--help`, and gives the tables the title "EXTRA".
fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(notes) = command.get_after_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.to_string().lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(&mut text)?;
    }
    Ok(text)
}
