//! How many tests passed, failed and were skipped, as libtest tells it.

use std::{fmt, iter::Sum, ops::Add};

/// The figures of one run or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    /// One check that is not a libtest test.
    pub(crate) fn of_check(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    /// Tests that did not run.
    pub(crate) fn of_skipped(skipped: usize) -> Self {
        Self { skipped, ..Self::default() }
    }

    /// From libtest's last line:
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`.
    /// Tests that a filter left out were not asked for, and are not skipped.
    pub(crate) fn of_result_line(line: &str) -> Option<Self> {
        let figures = line.strip_prefix("test result: ")?;
        let figure = |name: &str| {
            figures.split([';', '.']).find_map(|part| part.trim().strip_suffix(name)?.trim().parse::<usize>().ok())
        };
        Some(Self { passed: figure("passed")?, failed: figure("failed")?, skipped: figure("ignored")? })
    }

    /// These with so many of the failed ones passed.
    pub(crate) fn passing(self, now: usize) -> Self {
        Self { passed: self.passed + now, failed: self.failed.saturating_sub(now), ..self }
    }

    /// Whether any test ran.
    pub(crate) fn any_ran(self) -> bool {
        self.passed + self.failed > 0
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_is_read() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.04s";
        assert_eq!(Counts::of_result_line(line), Some(Counts { passed: 12, failed: 0, skipped: 1 }));
        let line = "test result: FAILED. 2 passed; 7 failed; 0 ignored; 0 measured; 0 filtered out; finished in 61.20s";
        assert_eq!(Counts::of_result_line(line), Some(Counts { passed: 2, failed: 7, skipped: 0 }));
    }

    #[test]
    fn other_lines_are_not() {
        for line in
            ["", "running 3 tests", "test a::b ... ok", "test result: ok.", "test result: ok. x passed; 0 failed"]
        {
            assert_eq!(Counts::of_result_line(line), None, "{line}");
        }
    }

    #[test]
    fn figures_add_up_to_the_closing_line() {
        let all = [Counts::of_check(true), Counts::of_check(false), Counts::of_skipped(3)];
        assert_eq!(all.into_iter().sum::<Counts>().to_string(), "1 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn a_skipped_test_has_not_run() {
        assert!(!Counts::of_skipped(3).any_ran());
        assert!(Counts::of_check(false).any_ran());
    }
}
