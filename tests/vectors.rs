//! The judges of other implementations: `duogpt verify --results`, and `fixtures/vectors/check.py`, held to each other.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{duogpt, fixture};
use duogpt::backend::Cpu;
use duogpt::tensors::{Dtype, FloatType, TensorWriter};
use duogpt::verify::vectors::tensor::Contents;
use duogpt::verify::vectors::{
    Case, CaseTensor, CaseTensors, Followed, NegativeCase, bounds, case_folders, compute, judge,
    read_case_tensors, write_case_tensors,
};
use ndarray::Array2;
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

/// A Python with numpy; none where there is none.
fn python() -> Option<Command> {
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
    let mut command = Command::new(python);
    command.arg("-B");
    Some(command)
}

/// The Python judge.
fn check_py(arguments: &[&str]) -> Option<Output> {
    Some(python()?.arg(fixture("vectors/check.py")).args(arguments).output().unwrap())
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

/// Status and first failing stage by case, of either judge.
type Verdicts = BTreeMap<String, (String, String)>;

fn verdicts_of_python(output: &Output) -> Verdicts {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let string = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let verdict =
        |case: &serde_json::Value| (string(&case["case"]), (string(&case["status"]), string(&case["stage"])));
    report["cases"].as_array().unwrap().iter().map(verdict).collect()
}

fn verdicts_of_rust(output: &Output) -> Verdicts {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let string = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let verdict = |file: &serde_json::Value| {
        let case = &file["case"];
        (string(&case["name"]), (string(&case["status"]), string(&case["failure"]["stage"])))
    };
    report["files"].as_array().unwrap().iter().map(verdict).collect()
}

/// The verdicts of both judges, which must be the same, with exit code `code`; without Python, this program's.
fn agreed(results: &Path, more: &[&str], code: i32) -> Verdicts {
    let more = [&["--json"], more].concat();
    let outcome = judged(&root(), results, &more);
    assert_eq!(outcome.status.code(), Some(code), "{}", String::from_utf8_lossy(&outcome.stderr));
    let ours = verdicts_of_rust(&outcome);
    if let Some(theirs) = check_py(&[&["compare", text(&root()), text(results)], &more[..]].concat()) {
        assert_eq!(theirs.status.code(), Some(code), "{}", String::from_utf8_lossy(&theirs.stderr));
        assert_eq!(verdicts_of_python(&theirs), ours);
    }
    ours
}

/// Cases whose right output is the input itself or zero, and that record nothing else.
const UNDECIDED: [&str; 9] = [
    "activation/decode-s0",
    "activation/random-s0",
    "activation/ties-s0",
    "activation/ties-s30",
    "activation/zeros-s0",
    "activation/zeros-s30",
    "activation/zeros-s50",
    "activation/zeros-s65",
    "activation/zeros-s90",
];

#[test]
fn both_judges_agree_on_good_and_on_wrong_results() {
    let good = results(|_, computed| computed);
    let ours = agreed(good.path(), &[], 0);
    let status = |name: &str| if UNDECIDED.contains(&name) { "undecided" } else { "pass" };
    assert_eq!(ours.len(), 122);
    assert!(ours.iter().all(|(name, (found, _))| found == status(name)), "{ours:?}");
    if check_py(&["list", text(&root())]).is_none() {
        return;
    }

    // The implementation in Python, judged by this program.
    let solved = tempfile::tempdir().unwrap();
    let outcome = check_py(&["run", text(&root()), text(solved.path())]).unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(judged(&root(), solved.path(), &[]).status.code(), Some(0));
    let outcome = check_py(&["selftest", text(&root())]).unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));

    // Each wrong result in place of the right one.
    for negative in negatives() {
        let (folder, of) = (tempfile::tempdir().unwrap(), &negative.document.of);
        let path = folder.path().join(format!("{of}.safetensors"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(negative.folder.join("tensors.safetensors"), &path).unwrap();
        let verdicts = agreed(folder.path(), &["--only", of, "--allow-missing"], 1);
        let expected = ("fail".to_string(), negative.document.first_bad_stage.clone());
        assert_eq!(verdicts[of], expected, "{}", negative.document.id);
    }
}

#[test]
fn a_port_that_returns_its_input_zeros_or_nan_passes_nothing() {
    let outputs = |case: &Case, precision: FloatType, value: &dyn Fn(usize) -> f64| -> CaseTensors {
        let shown = case.document.stages.iter().flat_map(|stage| &stage.tensors);
        let outputs = shown.filter(|name| name.starts_with("output."));
        outputs
            .map(|name| {
                let mut tensor = case.tensors[name].clone();
                if let Contents::Reals(_) = tensor.contents {
                    tensor.contents = Contents::Reals(precision);
                }
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
    let its_input = |precision| {
        results(move |case, _| outputs(case, precision, &|at| input(case)[at % input(case).len()]))
    };
    let zeros = |case: &Case, computed: CaseTensors| -> CaseTensors {
        let shown = case.document.stages.iter().flat_map(|stage| &stage.tensors);
        let zero = |tensor: &CaseTensor| CaseTensor { values: tensor.values.mapv(|_| 0.0), ..tensor.clone() };
        shown.filter_map(|name| Some((name.clone(), zero(computed.get(name)?)))).collect()
    };
    let ports = [
        ("input", its_input(FloatType::F64)),
        ("input in f32", its_input(FloatType::F32)),
        ("input in bf16", its_input(FloatType::Bf16)),
        ("zeros", results(|case, _| outputs(case, FloatType::F64, &|_| 0.0))),
        ("zeros in every stage", results(zeros)),
        ("NaN", results(|case, _| outputs(case, FloatType::F64, &|_| f64::NAN))),
    ];
    for (what, port) in &ports {
        for more in [&[][..], &["--rtol", "1e-4"], &["--rtol", "0.999"]] {
            let verdicts = agreed(port.path(), more, 1);
            assert!(verdicts.values().all(|(status, _)| status != "pass"), "{what} {more:?}: {verdicts:?}");
        }
    }
    let verdicts = agreed(ports[0].1.path(), &[], 1);
    assert!(UNDECIDED[..5].iter().all(|name| verdicts[*name].0 == "undecided"), "{verdicts:?}");
    assert!(agreed(ports[5].1.path(), &[], 1).values().all(|(status, _)| status == "fail"));
}

#[test]
fn a_tolerance_that_accepts_zeros_is_refused() {
    for rtol in ["1", "1e3", "inf", "NaN", "-1e-9"] {
        let argument = format!("--rtol={rtol}");
        let ours = judged(&root(), &root(), &[&argument]);
        assert_eq!(ours.status.code(), Some(2));
        let said = String::from_utf8_lossy(&ours.stderr).into_owned();
        let why = if rtol.parse::<f64>().unwrap() >= 1.0 { "accepts zeros" } else { "not a tolerance" };
        assert!(said.contains(why), "{said}");
        if let Some(theirs) = check_py(&["compare", text(&root()), text(&root()), &argument]) {
            let said = String::from_utf8_lossy(&theirs.stderr);
            assert!(theirs.status.code() == Some(2) && said.contains("[0, 1)"), "{said}");
        }
    }
}

#[test]
fn a_case_that_the_reference_refuses_is_one_failed_case() {
    let folder = tempfile::tempdir().unwrap();
    copy_case("sparsegpt/basic", folder.path(), |_, _| {});
    copy_case("sparsegpt/one-block", folder.path(), |document, _| {
        *document = document.replacen("\"damping\": 0.01", "\"damping\": -1", 1);
    });
    for precision in ["f64", "f32"] {
        let outcome = duogpt(&["verify", "--vectors", text(folder.path()), "--precision", precision]);
        let said = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(outcome.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&outcome.stderr));
        assert!(
            said.contains("PASS  sparsegpt/basic") && said.contains("FAIL  sparsegpt/one-block"),
            "{said}"
        );
        assert!(said.contains("first failing stage: refused: damping -1 must be"), "{said}");
    }
}

/// A copy of a published case below `vectors`, changed by `edit` (case.json, tensors).
fn copy_case(name: &str, vectors: &Path, edit: impl Fn(&mut String, &mut CaseTensors)) {
    let (source, target) = (root().join(name), vectors.join(name));
    let mut document = fs::read_to_string(source.join("case.json")).unwrap();
    let mut tensors = read_case_tensors(&source.join("tensors.safetensors")).unwrap();
    edit(&mut document, &mut tensors);
    fs::create_dir_all(&target).unwrap();
    fs::write(target.join("case.json"), document).unwrap();
    write_case_tensors(&target.join("tensors.safetensors"), &tensors).unwrap();
}

#[test]
fn results_in_half_precision_are_read_by_both_judges() {
    for precision in [FloatType::F16, FloatType::Bf16] {
        let port = results(|case, mut computed| {
            computed.retain(|name, _| case.document.stages.iter().any(|stage| stage.tensors.contains(name)));
            for tensor in computed.values_mut().filter(|tensor| matches!(tensor.contents, Contents::Reals(_)))
            {
                tensor.contents = Contents::Reals(precision);
            }
            computed
        });
        let only = ["--only", "sparsegpt/one-block", "--rtol"];
        let rtol = (2.0 * precision.unit_roundoff()).to_string();
        let verdicts = agreed(port.path(), &[&only[..], &[&rtol]].concat(), 0);
        assert_eq!(verdicts["sparsegpt/one-block"].0, "pass");
        let verdicts = agreed(port.path(), &[&only[..], &["1e-5"]].concat(), 1);
        assert_eq!(verdicts["sparsegpt/one-block"].0, "fail");
        // Without a loop, rounding explains every stage.
        let verdicts = agreed(port.path(), &["--only", "wanda/per-row-50"], 0);
        assert_eq!(verdicts["wanda/per-row-50"].0, "pass");
    }
}

/// Writes results as f64, with the metadata `arithmetic`.
fn write_results(path: &Path, tensors: &CaseTensors, arithmetic: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let dtype = |tensor: &CaseTensor| match tensor.contents {
        Contents::Reals(_) => Dtype::F64,
        Contents::Flags => Dtype::U8,
        Contents::Integers => Dtype::I64,
    };
    let headers =
        tensors.iter().map(|(name, tensor)| (name.as_str(), dtype(tensor), tensor.shape.as_slice()));
    let metadata = HashMap::from([("arithmetic".to_string(), arithmetic.to_string())]);
    let writer = TensorWriter::create(path, headers, &metadata).unwrap();
    for (name, tensor) in tensors {
        let bytes: Vec<u8> = match tensor.contents {
            Contents::Reals(_) => tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Contents::Flags => tensor.values.iter().map(|x| *x as u8).collect(),
            Contents::Integers => tensor.values.iter().flat_map(|x| (*x as i64).to_le_bytes()).collect(),
        };
        writer.write(name, &bytes).unwrap();
    }
    writer.sync().unwrap();
}

#[test]
fn both_judges_explain_the_same_differences_by_rounding() {
    for (number, (precision, name)) in
        [(FloatType::F32, "f32"), (FloatType::Bf16, "bf16"), (FloatType::F16, "f16")].into_iter().enumerate()
    {
        // Every bounded tensor of every case just within its bound, and one of them just beyond.
        let (within, beyond) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut expected = Verdicts::new();
        for (at, case) in cases().iter().enumerate() {
            let stages = || {
                case.document.stages.iter().flat_map(|stage| stage.tensors.iter().map(move |t| (stage, t)))
            };
            let mut shown: CaseTensors =
                stages().map(|(_, name)| (name.clone(), case.tensors[name].clone())).collect();
            let bounded: Vec<_> = stages()
                .filter(|(_, name)| matches!(case.tensors[*name].contents, Contents::Reals(_)))
                // Where all is zero, the tolerance of the case allows more.
                .filter(|(_, name)| case.tensors[*name].values.iter().any(|x| *x != 0.0))
                .filter_map(|(stage, name)| {
                    let tensor = &case.tensors[name];
                    Some((stage, name, tensor, bounds::allowed(case, name, tensor, precision)?))
                })
                .collect();
            let moved = |shown: &mut CaseTensors,
                         (_, name, tensor, allowed): &(_, &String, &CaseTensor, Array2<f64>),
                         share: f64| {
                // Where most is allowed, so that the tolerance of the case does not matter.
                let most = |a: &(_, &f64), b: &(_, &f64)| a.1.total_cmp(b.1);
                let (place, allowed) = allowed.indexed_iter().max_by(most).unwrap();
                shown.get_mut(*name).unwrap().values[place] = tensor.values[place] + share * allowed;
            };
            bounded.iter().for_each(|one| moved(&mut shown, one, if at % 2 == 0 { 0.9999 } else { -0.9999 }));
            let file = |folder: &TempDir| folder.path().join(format!("{}.safetensors", case.name()));
            write_results(&file(&within), &shown, name);
            if let Some(one) = bounded.get((at + number) % bounded.len().max(1)) {
                moved(&mut shown, one, 1.0001);
                expected.insert(case.name(), ("fail".to_string(), one.0.name.clone()));
            }
            write_results(&file(&beyond), &shown, name);
        }
        let verdicts = agreed(within.path(), &[], 0);
        assert!(verdicts.values().all(|(status, _)| status != "fail"), "{name}: {verdicts:?}");
        let mut found = agreed(beyond.path(), &[], 1);
        found.retain(|_, (status, _)| status == "fail");
        assert_eq!(found, expected, "{name}");
        assert!(expected.len() > 100, "{}", expected.len());
    }
}

#[test]
fn an_arithmetic_that_is_not_known_is_named_by_both_judges() {
    let case = Case::load(&root().join("sparsegpt/nm-2-4")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparsegpt/nm-2-4.safetensors");
    let shown = CaseTensors::from([("output.weight".into(), case.tensors["output.weight"].clone())]);
    write_results(&path, &shown, "int8");
    let only = ["--only", "sparsegpt/nm-2-4", "--allow-missing"];
    let verdicts = agreed(folder.path(), &only, 1);
    assert_eq!(verdicts["sparsegpt/nm-2-4"], ("fail".into(), "file".into()));
    let said = judged(&root(), folder.path(), &only);
    assert!(String::from_utf8_lossy(&said.stdout).contains("metadata `arithmetic` is `int8`"));
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
    assert!(code == Some(1) && said.contains("first failing stage: output"), "{said}");
    assert!(said.contains("stats.hessian") && said.contains("% of what rounding explains"), "{said}");
    let (code, said) = run(&["--rtol", "1e-4"]);
    let missing = "FAIL  sparsegpt/nm-2-4-ties\n  first failing stage: file: there is no ";
    assert!(code == Some(1) && said.contains(missing), "{said}");
    let expected = |status: &str, stage: &str| (status.to_string(), stage.to_string());
    let only = ["--only", "sparsegpt/nm-2-4", "--rtol", "1e-4"];
    let verdicts = agreed(folder.path(), &only, 1);
    assert_eq!(verdicts["sparsegpt/nm-2-4"], expected("pass", ""));
    assert_eq!(verdicts["sparsegpt/nm-2-4-ties"], expected("fail", "file"));
    let verdicts = agreed(folder.path(), &[&only[..], &["--allow-missing"]].concat(), 0);
    assert_eq!(verdicts["sparsegpt/nm-2-4-ties"], expected("missing", ""));
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
    let mut miscounted = tensors.clone();
    miscounted.get_mut("input.calls").unwrap().values[(0, 1)] += 1.0;
    let version = document.replace("\"schema_version\": 1", "\"schema_version\": 2");
    let stage = document.replacen("\"trace.dead\"],", "\"trace.unknown\"],", 1);
    assert!(version != document && stage != document);
    for (what, document, tensors) in [
        ("schema_version 2", &version, tensors.clone()),
        ("trace.score", &document, without("trace.score")),
        ("stats.hessian", &document, reshaped),
        ("`input.calls` counts", &document, miscounted),
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
        let theirs = check_py(&["compare", vectors, vectors]);
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
    make("joint", &["sparsegpt", "--seed", "2", "--bits", "4", "--symmetric=false"]);
    make("ordered", &["duogpt", "--seed", "3", "--column-order", "hessian-drift", "--block-size", "16"]);
    make("groups", &["duogpt", "--seed", "4", "--weight-sparsity", "2:4"]);
    make("dealt", &["duogpt", "--seed", "5", "--column-order", "interleaved", "--block-size", "16"]);
    make("row", &["wanda", "--seed", "6"]);
    make("share", &["wanda", "--seed", "7", "--variant", "cumulative"]);
    make("layer", &["magnitude", "--seed", "8"]);
    make("grids", &["gptq", "--seed", "9", "--group-size", "8", "--block-size", "16", "--mse"]);
    make(
        "drift",
        &["gptaq", "--seed", "10", "--static-groups", "--group-size", "20", "--column-order", "hessian"],
    );
    make("tokens", &["activation", "--seed", "11"]);
    make("histogram", &["teal", "--seed", "12"]);
    make(
        "bins",
        &["teal", "--seed", "13", "--bins", "50", "--outlier-threshold", "0.05", "--apply-prefill=false"],
    );
    make("several", &["teal", "--seed", "14", "--activation-sparsity", "0.3,0.6"]);
    make("preserved", &["sparsegpt", "--seed", "15", "--preserve-mask", "--block-size", "16"]);
    make("preserved-groups", &["sparsegpt", "--seed", "16", "--preserve-mask", "--weight-sparsity", "2:4"]);
    make("narrow", &["sparsegpt", "--seed", "17", "--weight-sparsity", "2:4", "--block-size", "10"]);
    make(
        "narrow-dense",
        &[
            "sparsegpt",
            "--seed",
            "17",
            "--weight-sparsity",
            "2:4",
            "--block-size",
            "10",
            "--skip-narrow-group",
        ],
    );
    make("second", &["gptaq", "--seed", "18", "--group-member", "1", "--grid", "offset"]);
    make("factor", &["duogpt", "--seed", "19", "--hessian-factor", "2", "--alpha", "1"]);
    let singular = ["--singular", "--damping", "0", "--sequences", "2"];
    make("stopped", &[&["sparsegpt", "--seed", "20"], &singular[..]].concat());
    make(
        "stopped-ordered",
        &[&["gptq", "--seed", "21", "--column-order", "hessian"], &singular[..]].concat(),
    );
    make("fallback", &[&["sparsegpt", "--seed", "22", "--identity-fallback"], &singular[..]].concat());
    let outcome = duogpt(&["vectors", "check", vectors]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("23 cases"), "{said}");
    let outcome = duogpt(&["verify", "--vectors", vectors]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    if let Some(outcome) = check_py(&["selftest", vectors]) {
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    }
    let output =
        |name: &str, tensor: &str| Case::load(&folder.path().join(name)).unwrap().tensors[tensor].clone();
    assert_eq!(output("sparsegpt/stopped", "output.error").values[(0, 0)], 1.0);
    assert_eq!(output("gptq/stopped-ordered", "output.error").values[(0, 0)], 1.0);
    assert_eq!(output("sparsegpt/fallback", "trace.hinv_chol").values, ndarray::Array2::<f64>::eye(40));
    let narrow =
        ["narrow", "narrow-dense"].map(|id| output(&format!("sparsegpt/{id}"), "output.weight").values);
    let zeros = narrow.map(|weight| weight.iter().filter(|w| **w == 0.0).count());
    assert_eq!(zeros, [10 * 24, 10 * 16], "two groups of four and a narrow one in each of four blocks");
    // Bounds are recorded, and held to the inputs.
    let ordered = folder.path().join("duogpt/ordered/tensors.safetensors");
    let right = read_case_tensors(&ordered).unwrap();
    let recorded = ["stats.hessian", "stats.dxxt", "trace.q_matrix", "trace.p_matrix", "trace.score"];
    assert!(recorded.iter().all(|name| right.contains_key(&format!("bnd.{name}"))));
    let mut wrong = right.clone();
    wrong.get_mut("bnd.trace.q_matrix").unwrap().values[(3, 5)] *= 0.5;
    write_case_tensors(&ordered, &wrong).unwrap();
    let outcome = duogpt(&["vectors", "check", vectors]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.code() == Some(1) && said.contains("`bnd.trace.q_matrix` is "), "{said}");
    assert!(said.contains("at row 3, column 5") && said.contains("1 breaches"), "{said}");
    write_case_tensors(&ordered, &right).unwrap();
    // A seed is a case, and another seed another one.
    let first = fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap();
    make("row", &["wanda", "--seed", "6"]);
    assert_eq!(fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap(), first);
    make("row", &["wanda", "--seed", "13"]);
    assert_ne!(fs::read(folder.path().join("wanda/row/tensors.safetensors")).unwrap(), first);
}

#[test]
fn every_setting_of_the_schema_can_be_made_and_no_other() {
    let schema = fs::read_to_string(root().join("case.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let help = duogpt(&["vectors", "make", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout);
    for name in schema["$defs"]["settings"]["properties"].as_object().unwrap().keys() {
        // The rule of the mask follows from the others.
        let option = format!("--{} ", name.replace('_', "-"));
        let offered = help.contains(&option) || help.contains(&format!("{}[", option.trim()));
        assert_eq!(offered, name != "mask_rule", "{option}");
    }
    let folder = tempfile::tempdir().unwrap();
    let fixed = ["vectors", "make", "--output", text(folder.path()), "--seed", "1", "--shape", "8x16"];
    for (more, why) in [
        (&["--algorithm", "wanda", "--bits", "4"][..], "`bits` is no setting of wanda"),
        (&["--algorithm", "gptq", "--preserve-mask"], "`preserve_mask` is no setting of gptq"),
        (&["--algorithm", "sparsegpt", "--mse"], "`mse` is no setting of sparsegpt"),
        (&["--algorithm", "sparsegpt", "--singular"], "--damping 0"),
        // Fewer tokens than channels, not damped: two columns' pivots are rounding errors.
        (
            &["--algorithm", "sparsegpt", "--damping", "0", "--sequences", "1", "--tokens", "12"],
            "depends on rounding",
        ),
        (
            &["--algorithm", "sparsegpt", "--damping", "0", "--identity-fallback", "--tokens", "3"],
            "depends on rounding",
        ),
        // So little damping that the factor is known to three digits.
        (
            &["--algorithm", "sparsegpt", "--damping", "1e-11", "--sequences", "1", "--tokens", "12"],
            "differ by more than the case's tolerance",
        ),
    ] {
        let outcome = duogpt(&[&fixed[..], more].concat());
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains(why), "{more:?}: {said}");
    }
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is written of a refused case");
}

#[test]
fn the_published_cases_fit_the_schema_and_a_breach_is_named() {
    let outcome = duogpt(&["vectors", "check", text(&root())]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(
        outcome.status.success()
            && said.contains("122 cases, 36 wrong results, 0 breaches of the schema, 0 unusable"),
        "{said}"
    );
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
    // What cannot be used does not hide the rest.
    for name in ["sparsegpt/basic", "teal/skewed"] {
        copy_case(name, folder.path(), |_, tensors| {
            tensors.pop_first();
        });
    }
    let outcome = duogpt(&["vectors", "check", text(folder.path())]);
    let (said, errors) = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(outcome.status.code(), Some(2), "{said}");
    assert!(
        said.contains("`speed` is unknown") && said.contains("3 cases") && said.contains("2 unusable"),
        "{said}"
    );
    assert!(errors.contains("sparsegpt/basic") && errors.contains("teal/skewed"), "{errors}");
}

#[test]
fn the_page_opens_with_a_picture_whose_cells_lead_to_their_stages() {
    let folder = results(|case, mut computed| {
        match case.name().as_str() {
            "sparsegpt/one-block" => computed.get_mut("trace.score").unwrap().values *= 2.0,
            "wanda/per-row-50" => drop(computed.remove("output.weight")),
            _ => {}
        }
        computed
    });
    fs::remove_file(folder.path().join("teal/skewed.safetensors")).unwrap();
    let page = folder.path().join("page.html");
    assert_eq!(judged(&root(), folder.path(), &["--html", text(&page)]).status.code(), Some(1));
    let html = fs::read_to_string(&page).unwrap();
    let (before, rest) = html.split_once("</tbody></table>").unwrap();
    let (top, picture) = before.split_once("<table class=\"picture\">").unwrap();
    assert!(
        !top.contains("<table") && rest.contains("<th>BLAS</th>"),
        "the picture stands before the environment"
    );
    // Failures first, in the picture and below.
    let rows: Vec<&str> = picture.split("<tbody>").nth(1).unwrap().split("</tr>").collect();
    let failed = ["sparsegpt/one-block", "teal/skewed", "wanda/per-row-50"];
    for (row, name) in rows.iter().zip(failed) {
        assert!(row.contains(name) && row.contains("class=\"u4\""), "{row}");
    }
    let heads: Vec<&str> =
        rest.split("<h2").skip(1).map(|head| head.split("</h2>").next().unwrap()).collect();
    assert!(heads.iter().zip(failed).all(|(head, name)| head.contains("FAIL") && head.contains(name)));
    assert!(heads[3..].iter().all(|head| !head.contains("FAIL")));
    assert_eq!(picture.matches("class=\"u4\"").count(), 3);
    assert_eq!(picture.matches("<tr><th>").count(), 122 + 1);
    let links: Vec<&str> =
        picture.split("href=\"#").skip(1).map(|link| link.split('"').next().unwrap()).collect();
    assert!(links.len() > 122 * 3);
    for link in links {
        assert!(rest.contains(&format!("id=\"{link}\"")), "{link} leads nowhere");
    }
    judged(&root(), folder.path(), &["--allow-missing", "--html", text(&page)]);
    let html = fs::read_to_string(&page).unwrap();
    let row = html.split("</tr>").find(|row| row.contains("<th>teal/skewed</th>")).unwrap();
    assert!(row.contains("class=\"u6\"") && html.contains("MISSING teal/skewed"), "{row}");
}

/// The port in docs/runner.md, as it stands there.
#[test]
fn the_port_of_the_book_passes() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runner.md")).unwrap();
    let (_, port) = page.split_once("```python\n").unwrap();
    let (port, after) = port.split_once("```").unwrap();
    let Some(mut python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let outcome = python.args(["-c", port]).args([&root(), folder.path()]).output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let verdicts = agreed(folder.path(), &["--only", "wanda", "--allow-missing"], 0);
    let passed = verdicts.values().filter(|(status, _)| status == "pass").count();
    assert_eq!(passed, fs::read_dir(folder.path().join("wanda")).unwrap().count());
    let outcome = judged(&root(), folder.path(), &["--only", "wanda", "--allow-missing"]);
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(after.contains(said.lines().last().unwrap()), "{said}");
}
