//! Numbers in the book that come from files of the repository. Its examples run as documentation tests; links, anchors and
//! paths are checked where it is built (`make docs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use duogpt::evaluate::noise::Estimate;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_tables_of_settings_are_what_was_measured() {
    for results in ["profiles", "profiles-smollm2"] {
        compare_table(&read(&format!("benches/results/{results}.csv")));
    }
}

fn compare_table(results: &str) {
    let mut measured: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for line in results.lines().skip(1) {
        let [setting, _seed, dense, sparse] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("four fields: {line}")
        };
        let [of_dense, of_sparse] = measured.entry(setting.into()).or_default();
        of_dense.push(dense.parse().expect("a perplexity"));
        of_sparse.push(sparse.parse().expect("a perplexity"));
    }
    assert!(!measured.is_empty());
    let page = read("docs/differences.md");
    let mut missing = Vec::new();
    for (setting, runs) in measured {
        let cells = runs.map(|values| {
            let Estimate { mean, standard_deviation, .. } = Estimate::new(values, None);
            format!("{mean:.2} ± {:.2}", standard_deviation.expect("several runs"))
        });
        let row = format!("| {setting} | {} | {} |", cells[0], cells[1]);
        if !page.lines().any(|line| line == row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "docs/differences.md lacks the rows\n{}", missing.join("\n"));
}
