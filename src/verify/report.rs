//! What was compared with what, as text, JSON and one HTML page.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::compare::{Comparison, Decisions, Pattern, Place, UlpHistogram};
use super::kind::Kind;
use crate::calibrate::report::Environment;

/// All that a check compared, and what is needed to repeat it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command line that made it.
    pub command: String,
    /// Where it ran.
    pub environment: Environment,
    /// File by file.
    pub files: Vec<FileReport>,
    /// Results that must be rejected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub negatives: Vec<NegativeReport>,
}

/// The outcome of one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file that was checked.
    pub path: PathBuf,
    /// Its SHA-256; empty where arrays in memory were compared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// The file it was compared with; none where the reference was run on its inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<PathBuf>,
    /// What it holds; none where two files were compared.
    pub kind: Option<Kind>,
    /// Stage by stage, in the order of the algorithm.
    pub stages: Vec<Stage>,
    /// What was not compared, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
    /// The case of the test vectors that it was held to, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<CaseFacts>,
}

/// What a case of the test vectors is about, and where its result first went wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseFacts {
    /// `<algorithm>/<id>`.
    pub name: String,
    /// Why the case exists.
    pub flags: Vec<CaseFlag>,
    /// The verdict.
    pub status: CaseStatus,
    /// The first wrong step in time; none where everything that was shown is right.
    pub failure: Option<Failure>,
    /// What usually causes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The accepted outcome that fits, where it is not the case's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative: Option<String>,
}

/// The verdict on a case; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseStatus {
    /// Something is wrong, or a required result is missing.
    Fail,
    /// Nothing is wrong, but all that was shown is zero or repeats an input: a port that does nothing shows that too.
    Undecided,
    /// There is no result, and none was required.
    Missing,
    /// All that was shown is right.
    Pass,
}

/// What a case tests, or where the tool does what its paper does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseFlag {
    /// Its name.
    pub id: String,
    /// What a reader should know.
    pub reason: String,
}

/// The first wrong step of a result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// The stage.
    pub stage: String,
    /// The tensor.
    pub tensor: String,
    /// The slice of columns, or the block; empty where a tensor is compared at once.
    pub place: String,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let parts = [&self.stage, &self.place, &self.tensor].map(String::as_str);
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        write!(f, "{}: {}", parts.join(", "), self.why)
    }
}

/// A result that must be rejected, and where it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NegativeReport {
    /// `negative/<id>`.
    pub name: String,
    /// What is wrong with it.
    pub defect: String,
    /// The stage at which it must be rejected.
    pub expected: String,
    /// Where it was.
    pub failure: Option<Failure>,
    /// Whether that is the stage and the place.
    pub rejected_at_its_stage: bool,
    /// Whether its output alone is rejected too.
    pub rejected_by_its_output: bool,
}

impl NegativeReport {
    /// Whether it was rejected as it must be.
    pub fn passed(&self) -> bool {
        self.rejected_at_its_stage && self.rejected_by_its_output
    }

    /// One line.
    pub fn to_text(&self) -> String {
        let found = self.failure.as_ref().map_or("passes".into(), |failure| format!("rejected at {failure}"));
        let verdict = if self.passed() { "PASS" } else { "FAIL" };
        let mut text = format!("{verdict}  {}  {found}\n", self.name);
        if !self.rejected_at_its_stage {
            text += &format!("      must be rejected at {}: {}\n", self.expected, self.defect);
        }
        if !self.rejected_by_its_output {
            text += "      its output alone passes\n";
        }
        text
    }
}

/// The outcome of one stage, or of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// How far apart the two are.
    pub outcome: Outcome,
    /// What there is to say besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What was compared.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "compared")]
pub enum Outcome {
    /// Numbers.
    Values(Box<Comparison>),
    /// Mask bits, positions, codes.
    Decisions(Decisions),
    /// Nothing: the shapes differ.
    Shapes {
        /// The shape that was expected.
        expected: Vec<usize>,
        /// The shape that was found.
        found: Vec<usize>,
    },
}

impl Stage {
    /// A stage of values.
    pub fn values(name: impl Into<String>, outcome: Comparison) -> Self {
        let passed = outcome.passed();
        Stage { name: name.into(), passed, outcome: Outcome::Values(Box::new(outcome)), note: None }
    }

    /// A stage of decisions.
    pub fn decisions(name: impl Into<String>, outcome: Decisions) -> Self {
        let passed = outcome.passed();
        Stage { name: name.into(), passed, outcome: Outcome::Decisions(outcome), note: None }
    }

    /// A stage that fails before anything can be compared.
    pub fn shapes(name: impl Into<String>, expected: Vec<usize>, found: Vec<usize>) -> Self {
        Stage { name: name.into(), passed: false, outcome: Outcome::Shapes { expected, found }, note: None }
    }

    /// Values beyond the budget, or decisions that differ.
    pub fn differing(&self) -> usize {
        match &self.outcome {
            Outcome::Values(values) => values.over_budget,
            Outcome::Decisions(decisions) => decisions.differing,
            Outcome::Shapes { .. } => 0,
        }
    }

    /// The first difference beyond the budget in processing order, else the largest one.
    pub fn place(&self) -> Option<Place> {
        match &self.outcome {
            Outcome::Values(values) => values.first.or(values.worst),
            Outcome::Decisions(decisions) => decisions.flips.first().map(|flip| flip.place),
            Outcome::Shapes { .. } => None,
        }
    }

    /// How much of the budget is used, in percent; 0 for decisions.
    pub fn budget_used(&self) -> f64 {
        match &self.outcome {
            Outcome::Values(values) => values.budget_used(),
            _ => 0.0,
        }
    }

    /// One line: how far apart, of what was allowed.
    pub fn summary(&self) -> String {
        match &self.outcome {
            Outcome::Values(v) if v.shape.0 * v.shape.1 == 0 => "empty".into(),
            Outcome::Values(v) if v.rounding => {
                format!("error {:>8.2e}, {} of what rounding explains", v.error, percent(v.budget_used()))
            }
            Outcome::Values(v) => format!("error {:>8.2e} of {:>8.2e}", v.error, v.budget),
            Outcome::Decisions(d) => format!("{} of {} decisions differ", d.differing, d.of),
            Outcome::Shapes { expected, found } => format!("shape {found:?}, expected {expected:?}"),
        }
    }

    /// All there is to say about a difference, a line each; nothing where there is none.
    pub fn explanation(&self) -> Vec<String> {
        let mut lines = match &self.outcome {
            Outcome::Values(values) => explain_values(values),
            Outcome::Decisions(decisions) => explain_decisions(decisions),
            Outcome::Shapes { expected, found } if found.iter().rev().eq(expected) => {
                vec!["the shapes are each other's transpose".into()]
            }
            Outcome::Shapes { .. } => Vec::new(),
        };
        lines.extend(self.note.clone());
        lines
    }
}

fn at(place: &Place) -> String {
    format!("row {}, column {}: {:e} for {:e}", place.row, place.column, place.found, place.expected)
}

fn explain_values(v: &Comparison) -> Vec<String> {
    let Some(worst) = &v.worst else { return Vec::new() };
    let mut lines = Vec::new();
    if let Some(first) = &v.first {
        lines.push(format!("first beyond the budget (in processing order) at {}", at(first)));
        let of = v.shape.0 * v.shape.1;
        lines.push(format!("{} of {of} values beyond the budget", v.over_budget));
    }
    lines.push(format!("largest error {:.3e} at {}", worst.difference(), at(worst)));
    if let Some(place) = &v.worst_relative {
        lines.push(format!(
            "largest error relative to the value itself {:.3e} at {}",
            place.relative(),
            at(place)
        ));
    }
    lines.push(format!("relative L2 error {:.3e}", v.relative_l2));
    lines.push(match v.smallest_passing_budget() {
        Some(budget) => {
            format!(
                "{} of the budget used; passes with a tolerance of {budget:.3e}",
                percent(v.budget_used())
            )
        }
        None => "no tolerance would pass: NaN or infinities do not agree".into(),
    });
    if v.not_finite.expected + v.not_finite.found > 0 {
        let (expected, found) = (v.not_finite.expected, v.not_finite.found);
        lines.push(format!("NaN or infinite: {found} found, {expected} expected"));
    }
    lines.push(format!(
        "distance in units of the last place ({}): {}",
        v.ulps.precision.torch_name(),
        ulps(&v.ulps)
    ));
    if let Some(pattern) = &v.pattern {
        lines.push(describe(pattern));
    }
    lines
}

/// A percentage that may be astronomical.
pub(super) fn percent(x: f64) -> String {
    if x < 1e4 { format!("{x:.3} %") } else { format!("{x:.1e} %") }
}

fn ulps(histogram: &UlpHistogram) -> String {
    let buckets = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let mut parts: Vec<_> =
        buckets.map(|(bucket, count)| format!("{} ({count} times)", UlpHistogram::label(bucket))).collect();
    if histogram.incomparable > 0 {
        parts.push(format!("NaN ({} times)", histogram.incomparable));
    }
    parts.join(", ")
}

fn describe(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Negated => "every value has the opposite sign: look for a difference taken the wrong way round".into(),
        Pattern::PartlyNegated => "every value beyond the budget has the opposite sign".into(),
        Pattern::Scaled { factor } => format!("every value is {factor:.6} times the expected one: look for a missing factor"),
        Pattern::Transposed => "the transpose of what was expected: look for row-major read as column-major, or an upper factor for a lower one".into(),
    }
}

fn explain_decisions(d: &Decisions) -> Vec<String> {
    let Some(first) = d.flips.first() else { return Vec::new() };
    let mut lines = vec![format!(
        "first difference at row {}, column {} (position {}): {} for {}",
        first.place.row, first.place.column, first.position, first.place.found, first.place.expected
    )];
    lines.push(match (d.widest_margin, d.margin_budget) {
        (Some(widest), Some(budget)) => {
            format!("the clearest of them was {widest:.1e} from the tie, {budget:.1e} is allowed")
        }
        (Some(widest), None) => {
            format!("the clearest of them was {widest:.1e} from the tie, no difference is allowed")
        }
        (None, _) => "how close these decisions were is not known".into(),
    });
    lines
}

impl FileReport {
    /// Whether every stage holds; of a case, whether nothing of it is wrong.
    pub fn passed(&self) -> bool {
        match &self.case {
            Some(case) => case.failure.is_none(),
            None => self.stages.iter().all(|stage| stage.passed),
        }
    }

    /// Replaces the verdict on the case.
    pub(super) fn set_status(&mut self, status: CaseStatus) {
        if let Some(case) = &mut self.case {
            case.status = status;
        }
    }

    /// A line per stage, and an explanation below each that fails. Of a case that passes, one line.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.path.display());
        if let Some(case) = &self.case {
            text = self.case_text(case);
            if self.passed() {
                return text;
            }
        }
        for stage in &self.stages {
            let verdict = if stage.passed { "PASS" } else { "FAIL" };
            let largest = stage.place().filter(|_| stage.passed);
            let largest = largest.map_or(String::new(), |place| format!("  largest at {}", at(&place)));
            text += &format!("  {verdict}  {:<34} {}{largest}\n", stage.name, stage.summary());
            if !stage.passed {
                stage.explanation().iter().for_each(|line| text += &format!("        {line}\n"));
            }
        }
        self.not_compared.iter().for_each(|what| text += &format!("  skipped: {what}\n"));
        text
    }

    /// The verdict on a case: where it goes wrong, why it exists, what usually causes such a failure.
    fn case_text(&self, case: &CaseFacts) -> String {
        let Some(failure) = &case.failure else {
            match case.status {
                CaseStatus::Missing => {
                    return format!("MISSING  {}  no {}\n", case.name, self.path.display());
                }
                CaseStatus::Undecided => {
                    return format!(
                        "UNDECIDED  {}  all that is shown is zero or repeats an input: a port that does nothing passes too\n",
                        case.name
                    );
                }
                CaseStatus::Pass | CaseStatus::Fail => {}
            }
            let used = self.stages.iter().map(Stage::budget_used).fold(0.0, f64::max);
            let mut text = format!("PASS  {}  {} stages", case.name, self.stages.len());
            if used > 0.0 {
                text += &format!(", at most {} of the budget used", percent(used));
            }
            if let Some(alternative) = &case.alternative {
                text += &format!("; the accepted outcome `{alternative}`");
            }
            text.push('\n');
            self.not_compared.iter().for_each(|what| text += &format!("      skipped: {what}\n"));
            return text;
        };
        let mut text = format!("FAIL  {}\n  first failing stage: {failure}\n", case.name);
        if let Some(cause) = &case.cause {
            text += &format!("  usual causes: {cause}\n");
        }
        for flag in &case.flags {
            text += &format!("  the case: {}: {}\n", flag.id, flag.reason);
        }
        text
    }
}

impl Report {
    /// A report of this process: its command line and environment. `backend` is what computed.
    pub fn new(files: Vec<FileReport>, backend: String) -> Self {
        let quoted = |argument: String| match argument.contains([' ', '\'', '"', '*', '$', '\\']) {
            true => format!("'{}'", argument.replace('\'', r"'\''")),
            false => argument,
        };
        let command = std::env::args().map(quoted).collect::<Vec<_>>().join(" ");
        Report { command, environment: Environment::here(backend), files, negatives: Vec::new() }
    }

    /// All stages of all files.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.files.iter().flat_map(|file| &file.stages)
    }

    /// Cases whose result is wrong, stages of other files that do not hold, and wrong results that were not rejected.
    pub fn failed(&self) -> usize {
        let failed = |file: &FileReport| match file.case {
            Some(_) => usize::from(!file.passed()),
            None => file.stages.iter().filter(|stage| !stage.passed).count(),
        };
        self.files.iter().map(failed).sum::<usize>()
            + self.negatives.iter().filter(|negative| !negative.passed()).count()
    }

    /// Cases with this verdict.
    pub fn cases(&self, status: CaseStatus) -> usize {
        let found = |file: &&FileReport| file.case.as_ref().is_some_and(|case| case.status == status);
        self.files.iter().filter(found).count()
    }

    /// Pretty-printed JSON.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }
}
