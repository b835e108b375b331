//! Every case and every stage in one picture: cases down, stages across, coloured by the share of the budget used.

use super::markup::escape;
use super::report::{CaseStatus, FileReport, Outcome, Report, Stage};
use super::vectors::{CALL, FILE, REFUSED, STAGES};

pub(super) const STYLE: &str = "
table.picture { width: auto; border-collapse: separate; border-spacing: 2px } .picture th, .picture td { border: 0; padding: 0 .3rem }
.picture thead th { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 400 } .picture tbody th { font-weight: 400 }
.picture a { display: block; width: 1.4rem; height: 1.1rem; line-height: 1.1rem; text-align: center; text-decoration: none; color: #1a1a1a }
.u0 { background: #e5f2ec } .u1 { background: #a9d6c2 } .u2 { background: #f3d98b } .u3 { background: #e8a33d } .u4 { background: #b03a00 } .u5, .u6 { background: #e2e2e2 }
.picture .u4 a { color: #fff; font-weight: 700 } .key td { padding: 0 .5rem }
";

/// How a cell is drawn: class, sign, and what it says of the budget.
const SHADES: [(&str, &str, &str); 7] = [
    ("u0", "", "below 1 % of the budget, or equal"),
    ("u1", "", "1 to 10 %"),
    ("u2", "", "10 to 50 %"),
    ("u3", "", "50 to 100 %"),
    ("u4", "\u{d7}", "failed"),
    ("u5", "?", "undecided: zero, or an input"),
    ("u6", "\u{2013}", "no result"),
];

/// The name that links to a stage of the file with this number in the report.
pub(super) fn anchor(file: usize, stage: &str) -> String {
    format!("f{file}-{}", stage.split(':').next().unwrap_or_default())
}

/// The picture; nothing where no case of the test vectors was compared.
pub(super) fn picture(report: &Report) -> String {
    let mut cases: Vec<(usize, &FileReport)> =
        report.files.iter().enumerate().filter(|(_, file)| file.case.is_some()).collect();
    if cases.is_empty() {
        return String::new();
    }
    cases.sort_by_key(|(_, file)| file.case.as_ref().map(|case| case.status)); // stable: failures first
    // A result that is not there, a call that raises, or a case that is refused, fails before the first stage.
    let names = [FILE, CALL, REFUSED].into_iter().chain(STAGES.map(|(name, ..)| name));
    let shown: Vec<&str> =
        names.filter(|name| cases.iter().any(|(_, file)| shade(file, name).is_some())).collect();
    let mut html = String::from("<table class=\"picture\"><thead><tr><th></th>");
    shown.iter().for_each(|stage| html += &format!("<th>{stage}</th>"));
    html += "</tr></thead><tbody>\n";
    for (number, file) in cases {
        let Some(case) = &file.case else { continue };
        html += &format!("<tr><th>{}</th>", escape(&case.name));
        for stage in &shown {
            html += &match shade(file, stage) {
                Some(shade) => {
                    let (class, sign, says) = SHADES[shade];
                    let link = anchor(number, stage);
                    format!(
                        "<td class=\"{class}\"><a href=\"#{link}\" title=\"{stage}: {says}\">{sign}</a></td>"
                    )
                }
                None => "<td></td>".into(),
            };
        }
        html += "</tr>\n";
    }
    html += "</tbody></table>\n<table class=\"picture key\"><tr>";
    SHADES.iter().for_each(|(class, sign, says)| {
        html += &format!("<td class=\"{class}\">{sign}&nbsp;</td><td>{says}</td>");
    });
    html + "</tr></table>\n"
}

/// Which of [`SHADES`] a stage of a case has; none where it was not compared.
fn shade(file: &FileReport, stage: &str) -> Option<usize> {
    let case = file.case.as_ref()?;
    if case.status == CaseStatus::Missing {
        return (stage == FILE).then_some(6);
    }
    let of_stage = |s: &&Stage| s.name.split_once(": ").is_some_and(|(name, _)| name == stage);
    let failed_here = case.failure.as_ref().is_some_and(|failure| failure.stage == stage);
    let shades = file.stages.iter().filter(of_stage).map(|stage| match &stage.outcome {
        _ if !stage.passed => 4,
        _ if case.status == CaseStatus::Undecided => 5,
        Outcome::Values(values) => match values.budget_used() {
            used if used < 1.0 => 0,
            used if used < 10.0 => 1,
            used if used < 50.0 => 2,
            _ => 3,
        },
        _ => 0,
    });
    shades.chain(failed_here.then_some(4)).max()
}
