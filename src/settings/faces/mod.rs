//! What the binary is called as: itself, or another program whose options and defaults it then has.
//!
//! A face is one table of the other program's options, from which its command line, `--help` and its page in `docs/` are
//! made, and by which they become ours.

use std::ffi::OsString;
use std::path::Path;

mod command;
mod page;
mod python_proxies;
mod row;
mod translate;
mod vllm_router;

pub use command::{Asked, CommandLine};
pub use row::Program;

use crate::settings::reader::Reader;
use python_proxies::{MAD, TOY, TOY_NAMES};
use vllm_router::VLLM_ROUTER;

/// Makes the binary stand in for vllm-router under any name.
const DISAGGREGATION: &str = "--vllm-pd-disaggregation";

/// How the binary was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// As itself.
    Native,
    /// As vllm-router: by that name, or with `--vllm-pd-disaggregation`.
    VllmRouter,
    /// As the toy proxy of vLLM's examples or one of its descendants: by the names of their files.
    Toy,
    /// As MAD's proxy: by the name of its file.
    Mad,
}

impl Face {
    /// How these arguments call it, the program's name the first of them.
    #[must_use]
    pub fn of(arguments: &[OsString]) -> Face {
        let name = arguments.first().and_then(|program| Path::new(program).file_name()?.to_str()).unwrap_or_default();
        if name == VLLM_ROUTER.name {
            return Face::VllmRouter;
        } else if TOY_NAMES.contains(&name) {
            return Face::Toy;
        } else if name == MAD.name {
            return Face::Mad;
        }
        let rest = arguments.get(1..).unwrap_or_default();
        let serves = rest
            .first()
            .and_then(|first| first.to_str())
            .is_some_and(|first| first.starts_with('-') || Asked::NAMES.contains(&first));
        if serves && rest.iter().any(|argument| argument == DISAGGREGATION) {
            return Face::VllmRouter;
        }
        Face::Native
    }

    /// The program that it stands in for.
    #[must_use]
    pub fn program(self) -> Option<&'static Program> {
        match self {
            Face::Native => None,
            Face::VllmRouter => Some(&VLLM_ROUTER),
            Face::Toy => Some(&TOY),
            Face::Mad => Some(&MAD),
        }
    }
}

/// Tells the reader what a command line of another program comes to; one of our own it reads by itself.
pub(super) fn translate(line: &CommandLine, reader: &mut Reader<'_>) {
    line.tell(reader);
}

#[cfg(test)]
mod tests;
