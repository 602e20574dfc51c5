//! `completions`: what a shell needs to complete commands and flags.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  countersign completions bash >/etc/bash_completion.d/countersign
  countersign completions zsh >~/.zfunc/_countersign
  countersign completions fish >~/.config/fish/completions/countersign.fish")]
pub struct Arguments {
    /// Which shell
    pub shell: Shell,
}

/// The script for a shell.
pub fn script(arguments: &Arguments) -> anyhow::Result<String> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(arguments.shell, &mut command, "countersign", &mut script);
    Ok(String::from_utf8(script)?)
}
