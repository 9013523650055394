//! Every cause has its file, and every file is in the table and says what it is about.

use super::{
    Breach,
    source::{Source, is_module_of, words},
};

const CAUSES: &str = "probe-user/src/diagnose/causes";
const JUDGES: &str = "probe-user/src/diagnose";

/// Checks the files under `diagnose/causes`.
pub(crate) fn check(sources: &[Source]) -> Vec<Breach> {
    let is_cause = |source: &&Source| {
        source.path.parent().is_some_and(|parent| parent.ends_with(CAUSES)) && !source.path.ends_with("mod.rs")
    };
    sources.iter().filter(is_cause).filter_map(|cause| check_one(cause, sources)).collect()
}

/// Registered means: declared where the causes are declared, and named once more in the judgement (the table).
fn check_one(cause: &Source, sources: &[Source]) -> Option<Breach> {
    let name = cause.path.file_stem()?.to_str()?;
    let in_file = |source: &Source| words(&source.shipped).filter(|word| *word == name).count();
    let declared: usize = sources.iter().filter(|source| is_module_of(&source.path, CAUSES)).map(in_file).sum();
    if declared == 0 {
        return Some(Breach::new(&cause.path, 0, "not declared in diagnose/causes: the file is dead"));
    }
    let others = sources.iter().filter(|source| source.path.starts_with(JUDGES) && source.path != cause.path);
    let named: usize = others.map(in_file).sum();
    (named < 2).then(|| Breach::new(&cause.path, 0, "declared, but in no table of diagnose: the rule never runs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_with(module: &str, table: &str) -> Vec<String> {
        let sources = [
            Source::new(format!("{CAUSES}/mod.rs").into(), module),
            Source::new(format!("{JUDGES}/table.rs").into(), table),
            Source::new(format!("{CAUSES}/upstream_refused.rs").into(), "//! x\n"),
        ];
        check(&sources).into_iter().map(|breach| breach.rule).collect()
    }

    #[test]
    fn a_cause_in_the_table_is_registered() {
        assert!(
            check_with("mod upstream_refused;\n", "const A: [Rule; 1] = [causes::upstream_refused::RULE];\n")
                .is_empty()
        );
        assert!(check_with("mod upstream_refused;\nconst ALL: [Rule; 1] = [upstream_refused::RULE];\n", "").is_empty());
    }

    #[test]
    fn a_cause_that_is_not_declared_is_dead() {
        let rules = check_with("mod upstream_reset;\n", "// upstream_refused\n");
        assert_eq!(rules, ["not declared in diagnose/causes: the file is dead"]);
    }

    #[test]
    fn a_cause_that_is_in_no_table_never_runs() {
        let rules = check_with("mod upstream_refused;\n", "// upstream_refused\n");
        assert_eq!(rules, ["declared, but in no table of diagnose: the rule never runs"]);
    }
}
