//! The judges of other implementations: `duogpt verify --results`, and `fixtures/vectors/check.py`, held to each other.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{duogpt, fixture};
use duogpt::backend::Cpu;
use duogpt::verify::vectors::{
    Case, CaseTensors, Followed, NegativeCase, case_folders, compute, judge, read_case_tensors,
    write_case_tensors,
};
use tempfile::TempDir;

fn root() -> PathBuf {
    fixture("vectors/v1")
}

fn cases() -> Vec<Case> {
    let (cases, _) = case_folders(&root()).unwrap();
    cases.iter().map(|folder| Case::load(folder).unwrap()).collect()
}

fn negatives() -> Vec<NegativeCase> {
    let (_, negatives) = case_folders(&root()).unwrap();
    negatives.iter().map(|folder| NegativeCase::load(folder).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Results of every case, changed by `change`.
fn results(change: impl Fn(&Case, CaseTensors) -> CaseTensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let computed = compute::<f64, _>(&case, &Cpu, &Followed::default()).unwrap().tensors;
        let path = folder.path().join(format!("{}.safetensors", case.name()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_case_tensors(&path, &change(&case, computed)).unwrap();
    }
    folder
}

fn judged(vectors: &Path, results: &Path, more: &[&str]) -> Output {
    let arguments = [&["verify", "--vectors", text(vectors), "--results", text(results)], more].concat();
    duogpt(&arguments)
}

/// The Python judge; none where Python or numpy is not there.
fn python(arguments: &[&str]) -> Option<Output> {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|outcome| outcome.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{python} has no numpy, and CI must hold both judges to each other"
        );
        eprintln!(
            "skipped: {python} has no numpy, so that fixtures/vectors/check.py is not held to this program"
        );
        return None;
    }
    Some(Command::new(python).arg("-B").arg(fixture("vectors/check.py")).args(arguments).output().unwrap())
}

#[test]
fn every_wrong_result_is_rejected_at_its_stage_and_by_its_output_alone() {
    let cases = cases();
    let negatives = negatives();
    assert_eq!(negatives.len(), 36);
    let mut wrong = Vec::new();
    for negative in negatives {
        let document = &negative.document;
        let case = cases.iter().find(|case| case.name() == document.of).unwrap();
        let found = judge(case, &negative.tensors, None).failure;
        let found = found.as_ref().map(|failure| (failure.stage.as_str(), failure.place.as_str()));
        if found != Some((&document.first_bad_stage, &document.first_bad_place)) {
            wrong.push(format!("{}: {found:?}, not {}", document.id, document.first_bad_stage));
        }
        let mut output = negative.tensors.clone();
        output.retain(|name, _| name.starts_with("output."));
        if judge(case, &output, None).failure.is_none() {
            wrong.push(format!("{}: its output passes", document.id));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every verdict, as `name -> (status, first failing stage)`, of either judge.
fn verdicts_of_python(output: &Output) -> BTreeMap<String, (bool, String)> {
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let verdict = |line: &str| {
        let (status, rest) = line.split_once(char::is_whitespace)?;
        let name = rest.split_whitespace().next()?;
        let stage = rest.split_once("first failing stage: ").map_or("", |(_, stage)| stage);
        let stage = stage.split([',', ':']).next().unwrap_or_default();
        ["pass", "fail"].contains(&status).then(|| (name.to_string(), (status == "pass", stage.to_string())))
    };
    lines.lines().filter_map(verdict).collect()
}

fn verdicts_of_rust(output: &Output) -> BTreeMap<String, (bool, String)> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |file: &serde_json::Value| {
        let failure = &file["case"]["failure"];
        let stage = failure["stage"].as_str().unwrap_or_default().to_string();
        (file["case"]["name"].as_str().unwrap().to_string(), (failure.is_null(), stage))
    };
    report["files"].as_array().unwrap().iter().map(verdict).collect()
}

#[test]
fn both_judges_agree_on_good_and_on_wrong_results() {
    let good = results(|_, computed| computed);
    let outcome = judged(&root(), good.path(), &["--json"]);
    assert_eq!(outcome.status.code(), Some(0));
    let ours = verdicts_of_rust(&outcome);
    assert!(ours.len() == 122 && ours.values().all(|(passed, _)| *passed), "{ours:?}");
    let Some(theirs) = python(&["judge", text(&root()), text(good.path())]) else { return };
    assert_eq!(theirs.status.code(), Some(0), "{}", String::from_utf8_lossy(&theirs.stdout));
    assert_eq!(verdicts_of_python(&theirs), ours);

    // The implementation in Python, judged by this program.
    let solved = tempfile::tempdir().unwrap();
    let outcome = python(&["solve", text(&root()), text(solved.path())]).unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(judged(&root(), solved.path(), &[]).status.code(), Some(0));
    let outcome = python(&["selftest", text(&root())]).unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));

    // Each wrong result in place of the right one.
    for negative in negatives() {
        let (folder, of) = (tempfile::tempdir().unwrap(), &negative.document.of);
        let path = folder.path().join(format!("{of}.safetensors"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(negative.folder.join("tensors.safetensors"), &path).unwrap();
        let outcome = judged(&root(), folder.path(), &["--json", "--only", of, "--allow-missing"]);
        let ours = verdicts_of_rust(&outcome);
        assert_eq!(ours[of], (false, negative.document.first_bad_stage.clone()), "{}", negative.document.id);
        assert_eq!(outcome.status.code(), Some(1));
        let vectors = root();
        let arguments = ["judge", text(&vectors), text(folder.path()), "--only", of, "--allow-missing"];
        let theirs = python(&arguments).unwrap();
        assert_eq!(theirs.status.code(), Some(1));
        assert_eq!(verdicts_of_python(&theirs)[of], ours[of], "{}", negative.document.id);
    }
}

#[test]
fn a_port_that_returns_its_input_zeros_or_nan_passes_nothing() {
    let outputs = |case: &Case, value: &dyn Fn(usize) -> f64| -> CaseTensors {
        let shown = case.document.stages.iter().flat_map(|stage| &stage.tensors);
        let outputs = shown.filter(|name| name.starts_with("output."));
        outputs
            .map(|name| {
                let mut tensor = case.tensors[name].clone();
                tensor.values.iter_mut().enumerate().for_each(|(at, x)| *x = value(at));
                (name.clone(), tensor)
            })
            .collect()
    };
    let input = |case: &Case| -> Vec<f64> {
        let name = ["input.weight", "input.probe", "input.activations"];
        let input = name.iter().find_map(|name| case.tensors.get(*name)).unwrap();
        input.values.iter().copied().collect()
    };
    let ports: [(&str, TempDir); 3] = [
        ("input", results(|case, _| outputs(case, &|at| input(case)[at % input(case).len()]))),
        ("zeros", results(|case, _| outputs(case, &|_| 0.0))),
        ("NaN", results(|case, _| outputs(case, &|_| f64::NAN))),
    ];
    for (what, port) in &ports {
        for more in [&["--json"][..], &["--json", "--rtol", "1e-4"]] {
            let outcome = judged(&root(), port.path(), more);
            assert_eq!(outcome.status.code(), Some(1));
            // Where the right result is the input itself, or all zero, such an output is right.
            let passed: Vec<String> = verdicts_of_rust(&outcome)
                .into_iter()
                .filter(|(_, (passed, _))| *passed)
                .map(|(name, _)| name)
                .collect();
            let right =
                |name: &String| cases().iter().any(|case| case.name() == *name && is_right(case, what));
            assert!(passed.iter().all(right), "{what}: {passed:?}");
        }
    }
}

/// The output that is expected equals the input (once for each sparsity), or zero.
fn is_right(case: &Case, what: &str) -> bool {
    let expected = case.tensors.get("output.weight").or_else(|| case.tensors.get("output.activations"));
    let names = ["input.weight", "input.probe", "input.activations"];
    let input = names.iter().find_map(|name| case.tensors.get(*name));
    expected.zip(input).is_some_and(|(expected, input)| match what {
        "input" => expected.values.iter().eq(input.values.iter().cycle().take(expected.values.len())),
        "zeros" => expected.values.iter().all(|x| *x == 0.0),
        _ => false,
    })
}

#[test]
fn results_in_other_types_are_read_and_missing_ones_named() {
    let case = Case::load(&root().join("sparsegpt/nm-2-4")).unwrap();
    let mut shown = compute::<f32, _>(&case, &Cpu, &Followed::default()).unwrap().tensors;
    shown.retain(|name, _| ["output.weight", "trace.mask", "stats.hessian"].contains(&name.as_str()));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sparsegpt")).unwrap();
    let path = folder.path().join("sparsegpt/nm-2-4.safetensors");
    write_case_tensors(&path, &shown).unwrap();
    let run = |more: &[&str]| {
        let outcome = judged(&root(), folder.path(), &[&["--only", "sparsegpt/nm-2-4"], more].concat());
        (outcome.status.code(), String::from_utf8(outcome.stdout).unwrap())
    };
    let (code, said) = run(&["--rtol", "1e-4", "--allow-missing"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("`trace.score` is not shown") && said.contains("MISSING  sparsegpt/nm-2-4-ties"),
        "{said}"
    );
    let (code, said) = run(&["--allow-missing"]);
    assert!(code == Some(1) && said.contains("first failing stage: statistics"), "{said}");
    assert_eq!(run(&["--rtol", "1e-4"]).0, Some(1), "missing results are failures unless allowed");
    shown.remove("output.weight");
    write_case_tensors(&path, &shown).unwrap();
    let (code, said) = run(&["--rtol", "1e-4", "--allow-missing"]);
    assert!(code == Some(1) && said.contains("an output is required"), "{said}");
    fs::write(&path, "no tensors").unwrap();
    let (code, said) = run(&["--allow-missing"]);
    assert!(code == Some(1) && said.contains("first failing stage: file"), "{said}");
    let nowhere = judged(&root(), &folder.path().join("nowhere"), &[]);
    assert_eq!(nowhere.status.code(), Some(2));
}

#[test]
fn a_case_that_contradicts_itself_is_named_with_exit_code_2_by_both_judges() {
    let source = root().join("duogpt/act-order");
    let document = fs::read_to_string(source.join("case.json")).unwrap();
    let tensors = read_case_tensors(&source.join("tensors.safetensors")).unwrap();
    let without = |name: &str| {
        let mut tensors = tensors.clone();
        tensors.remove(name);
        tensors
    };
    let mut reshaped = tensors.clone();
    let hessian = reshaped.get_mut("stats.hessian").unwrap();
    hessian.shape = vec![hessian.shape[0] * hessian.shape[1]];
    let version = document.replace("\"schema_version\": 1", "\"schema_version\": 2");
    let stage = document.replacen("\"trace.dead\"],", "\"trace.unknown\"],", 1);
    assert!(version != document && stage != document);
    for (what, document, tensors) in [
        ("schema_version 2", &version, tensors.clone()),
        ("trace.score", &document, without("trace.score")),
        ("stats.hessian", &document, reshaped),
        ("trace.unknown", &stage, tensors.clone()),
        ("case.json", &"{".to_string(), tensors.clone()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let case = folder.path().join("duogpt/act-order");
        fs::create_dir_all(&case).unwrap();
        fs::write(case.join("case.json"), document).unwrap();
        write_case_tensors(&case.join("tensors.safetensors"), &tensors).unwrap();
        let vectors = text(folder.path());
        let ours = [duogpt(&["verify", "--vectors", vectors]), duogpt(&["vectors", "check", vectors])];
        let theirs = python(&["judge", vectors, vectors]);
        for outcome in ours.iter().chain(&theirs) {
            let message = String::from_utf8_lossy(&outcome.stderr);
            assert_eq!(outcome.status.code(), Some(2), "{what}: {message}");
            assert!(message.contains(what), "{what}: {message}");
        }
    }
}

#[test]
fn fresh_cases_fit_the_schema_and_both_implementations() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = text(folder.path());
    let make = |id: &str, more: &[&str]| {
        let fixed = ["vectors", "make", "--output", vectors, "--id", id, "--shape", "10x40", "--algorithm"];
        let outcome = duogpt(&[&fixed[..], more].concat());
        assert!(outcome.status.success(), "{id}: {}", String::from_utf8_lossy(&outcome.stderr));
    };
    make("plain", &["sparsegpt", "--seed", "1", "--block-size", "16"]);
    make("joint", &["sparsegpt", "--seed", "2", "--bits", "4", "--asymmetric"]);
    make("ordered", &["duogpt", "--seed", "3", "--column-order", "hessian-drift", "--block-size", "16"]);
    make("groups", &["duogpt", "--seed", "4", "--weight-sparsity", "2:4"]);
    make("dealt", &["duogpt", "--seed", "5", "--column-order", "interleaved", "--block-size", "16"]);
    make("row", &["wanda", "--seed", "6"]);
    make("share", &["wanda", "--seed", "7", "--cumulative"]);
    make("layer", &["magnitude", "--seed", "8"]);
    make("grids", &["gptq", "--seed", "9", "--group-size", "8", "--block-size", "16", "--mse"]);
    make(
        "drift",
        &["gptaq", "--seed", "10", "--static-groups", "--group-size", "20", "--column-order", "hessian"],
    );
    make("tokens", &["activation", "--seed", "11"]);
    make("histogram", &["teal", "--seed", "12"]);
    let outcome = duogpt(&["vectors", "check", vectors]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("12 cases"), "{said}");
    let outcome = duogpt(&["verify", "--vectors", vectors]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    if let Some(outcome) = python(&["selftest", vectors]) {
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    }
    // A seed is a case, and another seed another one.
    let first = fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap();
    make("row", &["wanda", "--seed", "6"]);
    assert_eq!(fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap(), first);
    make("row", &["wanda", "--seed", "13"]);
    assert_ne!(fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap(), first);
}

#[test]
fn the_published_cases_fit_the_schema_and_a_breach_is_named() {
    let outcome = duogpt(&["vectors", "check", text(&root())]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("122 cases, 36 wrong results, 0 breaches"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let case = folder.path().join("wanda/variant");
    fs::create_dir_all(&case).unwrap();
    let document = fs::read_to_string(root().join("wanda/variant/case.json")).unwrap();
    let document =
        document.replacen("\"seed\"", "\"speed\": 1,\n \"seed\"", 1).replacen("\"search\"", "\"quest\"", 1);
    fs::write(case.join("case.json"), document).unwrap();
    fs::copy(root().join("wanda/variant/tensors.safetensors"), case.join("tensors.safetensors")).unwrap();
    let outcome = duogpt(&["vectors", "check", text(folder.path())]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!(outcome.status.code(), Some(1), "{said}");
    assert!(said.contains("field `speed` is unknown") && said.contains("stage `quest` is unknown"), "{said}");
}

#[test]
fn the_page_opens_with_a_picture_whose_cells_lead_to_their_stages() {
    let folder = results(|case, mut computed| {
        if case.name() == "sparsegpt/one-block" {
            computed.get_mut("trace.score").unwrap().values *= 2.0;
        }
        computed
    });
    let page = folder.path().join("page.html");
    assert_eq!(judged(&root(), folder.path(), &["--html", text(&page)]).status.code(), Some(1));
    let html = fs::read_to_string(page).unwrap();
    let (before, rest) = html.split_once("</tbody></table>").unwrap();
    let picture = before.split("<table class=\"picture\">").nth(1).unwrap();
    // Failures first.
    let first_row = picture.split("<tbody>").nth(1).unwrap().split("</tr>").next().unwrap();
    assert!(first_row.contains("sparsegpt/one-block") && first_row.contains("class=\"u4\""), "{first_row}");
    assert_eq!(picture.matches("class=\"u4\"").count(), 1);
    assert_eq!(picture.matches("<tr><th>").count(), 122 + 1);
    let links: Vec<&str> =
        picture.split("href=\"#").skip(1).map(|link| link.split('"').next().unwrap()).collect();
    assert!(links.len() > 122 * 3);
    for link in links {
        assert!(rest.contains(&format!("id=\"{link}\"")), "{link} leads nowhere");
    }
}
