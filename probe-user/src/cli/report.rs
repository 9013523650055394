//! `probe502 report`: as typed, and as meant.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use thiserror::Error;

/// `probe502 report`, as typed.
#[derive(Debug, Args)]
pub struct Typed {
    /// A folder of `watch -o`, an incident.json, or the output of `watch --json`; - reads stdin
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// Write here; - is stdout (default for markdown)
    #[arg(short, long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// What to make: a page that needs nothing else, or text for an issue (default: html, or markdown for FILE.md)
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Call it so
    #[arg(long, value_name = "TITLE")]
    pub title: Option<String>,
    /// Say nothing on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

/// What a report can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One self-contained HTML file
    Html,
    /// Text for an issue
    Markdown,
}

/// Why the command line makes no sense.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// A page of HTML for the terminal.
    #[error("report: an HTML page needs a file: give --out FILE.html (or --out - for stdout), or --format markdown")]
    NoFile,
}

/// `probe502 report`, as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What to read; `-` is stdin.
    pub inputs: Vec<PathBuf>,
    /// Where to write; `None` is stdout.
    pub out: Option<PathBuf>,
    /// What to make.
    pub format: Format,
    /// The page's title.
    pub title: Option<String>,
    /// Nothing on stderr.
    pub quiet: bool,
}

impl TryFrom<Typed> for Report {
    type Error = ReportError;

    fn try_from(typed: Typed) -> Result<Self, ReportError> {
        let by_name = || typed.out.as_ref().is_some_and(|out| out.extension().is_some_and(|ending| ending == "md"));
        let format = typed.format.unwrap_or_else(|| if by_name() { Format::Markdown } else { Format::Html });
        if format == Format::Html && typed.out.is_none() {
            return Err(ReportError::NoFile);
        }
        Ok(Self {
            inputs: typed.inputs,
            out: typed.out.filter(|out| out.as_os_str() != "-"),
            format,
            title: typed.title,
            quiet: typed.quiet,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Arguments, Command};

    fn report(line: &str) -> Result<Report, ReportError> {
        let words = ["probe502", "report"].into_iter().chain(line.split_whitespace());
        let Command::Report(typed) = Arguments::try_parse_from(words).unwrap().command else { panic!("not report") };
        Report::try_from(typed)
    }

    #[test]
    fn a_report_is_html_in_a_file_or_markdown_anywhere() {
        assert_eq!(report("in"), Err(ReportError::NoFile));
        assert_eq!(report("in -o x.html").unwrap().format, Format::Html);
        assert_eq!(report("in -o -").unwrap().out, None);
        assert_eq!(report("in -o x.md").unwrap().format, Format::Markdown);
        assert_eq!(report("in --format markdown").unwrap().out, None);
        assert_eq!(report("in -o x.md --format html").unwrap().format, Format::Html);
    }
}
