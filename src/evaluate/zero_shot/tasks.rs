//! The seven tasks: how a line of a task file becomes a document with its choices.
//!
//! The templates are those of lm-evaluation-harness 0.4.8; `fixtures/zero_shot/RULES.md` states them. A field that no
//! template uses may be absent.
//!
//! | task | fields |
//! |---|---|
//! | `piqa` | `goal`, `sol1`, `sol2`; `label`: 0 or 1 |
//! | `hellaswag` | `activity_label`, `ctx_a`, `ctx_b`; `endings`: list; `label`: its index, as a string or a number |
//! | `winogrande` | `sentence` with a blank `_`, `option1`, `option2`; `answer`: `"1"` or `"2"` |
//! | `arc_easy`, `arc_challenge` | `question`; `choices`: lists `text` and `label`; `answerKey`: one of the labels |
//! | `openbookqa` | `question_stem`; `choices` and `answerKey` as above |
//! | `boolq` | `passage`, `question`; `label`: 0 (no) or 1 (yes) |

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::ZeroShotError;
use super::text::{capitalize, is_white_space, strip};
use crate::tensors::TensorError;

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// How to reach a goal in the physical world.
    Piqa,
    /// How a scene goes on.
    Hellaswag,
    /// What a pronoun refers to.
    Winogrande,
    /// School science.
    ArcEasy,
    /// School science, harder.
    ArcChallenge,
    /// Elementary science.
    Openbookqa,
    /// Yes or no, from a passage.
    Boolq,
}

impl Task {
    /// All seven.
    pub const ALL: [Task; 7] = [
        Task::Piqa,
        Task::Hellaswag,
        Task::ArcEasy,
        Task::ArcChallenge,
        Task::Winogrande,
        Task::Openbookqa,
        Task::Boolq,
    ];

    /// The five of the paper's main tables.
    pub const FIVE: [Task; 5] =
        [Task::Piqa, Task::Hellaswag, Task::ArcEasy, Task::ArcChallenge, Task::Winogrande];

    /// The harness's name, also that of the file.
    pub fn name(self) -> &'static str {
        match self {
            Task::Piqa => "piqa",
            Task::Hellaswag => "hellaswag",
            Task::Winogrande => "winogrande",
            Task::ArcEasy => "arc_easy",
            Task::ArcChallenge => "arc_challenge",
            Task::Openbookqa => "openbookqa",
            Task::Boolq => "boolq",
        }
    }

    /// Whether the harness also reports accuracy by log-likelihood per character.
    pub fn has_acc_norm(self) -> bool {
        !matches!(self, Task::Winogrande | Task::Boolq)
    }

    /// Reads `<task>.jsonl` of a directory. All of it is checked; `limit` keeps the first documents.
    ///
    /// # Errors
    /// [`ZeroShotError`]: unreadable, without documents, or a line that is not a document of this task.
    pub fn read(self, directory: &Path, limit: Option<usize>) -> Result<TaskData, ZeroShotError> {
        let path = directory.join(format!("{self}.jsonl"));
        if !path.is_file() {
            let there =
                Task::ALL.into_iter().filter(|task| directory.join(format!("{task}.jsonl")).is_file());
            let there: Vec<&str> = there.map(Task::name).collect();
            return Err(ZeroShotError::NoTask { path, there: there.join(", ") });
        }
        let bytes = std::fs::read(&path).map_err(TensorError::io(&path))?;
        let mut documents = Vec::new();
        for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let refused = |detail| ZeroShotError::Document { path: path.clone(), line: number + 1, detail };
            let text = str::from_utf8(line)
                .map_err(|error| refused(format!("not UTF-8 (byte {} of the line)", error.valid_up_to())))?;
            if text.trim().is_empty() {
                continue;
            }
            let (choices, gold) = self.parse(text).map_err(refused)?;
            documents.push(Document { line: number + 1, choices, gold });
        }
        let original = documents.len();
        documents.truncate(limit.unwrap_or(original));
        if documents.is_empty() {
            return Err(ZeroShotError::NoDocuments { path });
        }
        Ok(TaskData { task: self, path, documents, original })
    }

    fn parse(self, line: &str) -> Result<(Vec<Choice>, usize), String> {
        let json: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
        let record = Record(json.as_object().ok_or("not a JSON object")?);
        let (choices, gold) = match self {
            Task::Piqa => {
                let context = format!("Question: {}\nAnswer:", record.text("goal")?);
                let choices = [record.choice("sol1")?, record.choice("sol2")?];
                (with_context(&context, choices), record.binary("label")?)
            }
            Task::Hellaswag => hellaswag(record)?,
            Task::Winogrande => winogrande(record)?,
            Task::ArcEasy | Task::ArcChallenge => {
                let context = format!("Question: {}\nAnswer:", record.text("question")?);
                let (choices, gold) = record.labelled_choices(record.text("answerKey")?)?;
                (with_context(&context, choices), gold)
            }
            Task::Openbookqa => {
                let key = record.text("answerKey")?.trim_start_matches(is_white_space);
                let (choices, gold) = record.labelled_choices(key)?;
                (with_context(record.text("question_stem")?, choices), gold)
            }
            Task::Boolq => {
                let (passage, question) = (record.text("passage")?, record.text("question")?);
                let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
                (with_context(&context, ["no", "yes"]), record.binary("label")?)
            }
        };
        // Its white space will move to the continuation, and nothing would be left to predict from.
        let blank = |choice: &Choice| !choice.context.is_empty() && strip(&choice.context).is_empty();
        if choices.iter().any(blank) {
            return Err("the context is nothing but white space".into());
        }
        Ok((choices, gold))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The documents of one file.
#[derive(Clone, Debug)]
pub struct TaskData {
    /// The task.
    pub task: Task,
    /// The file.
    pub path: PathBuf,
    /// The documents to evaluate, in the order of the file.
    pub documents: Vec<Document>,
    /// Number of documents in the file.
    pub original: usize,
}

/// One question.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The choices.
    pub choices: Vec<Choice>,
    /// Index of the right one.
    pub gold: usize,
}

/// One request: how likely `continuation` is after `context`.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// The given text; may be empty.
    pub context: String,
    /// The scored text, with the space that separates it from the context.
    pub continuation: String,
    /// Unicode code points of the choice, without that space.
    pub characters: usize,
}

impl TaskData {
    /// SHA-256 of task and documents, in hexadecimal: identifies the data regardless of its path.
    pub fn digest(&self) -> String {
        let content = serde_json::to_vec(&(self.task, &self.documents)).expect("documents are plain data");
        base16ct::lower::encode_string(&Sha256::digest(content))
    }
}

impl Choice {
    fn new(context: String, choice: &str) -> Self {
        Choice { context, continuation: format!(" {choice}"), characters: choice.chars().count() }
    }
}

fn with_context<S: AsRef<str>>(context: &str, choices: impl IntoIterator<Item = S>) -> Vec<Choice> {
    choices.into_iter().map(|choice| Choice::new(context.into(), choice.as_ref())).collect()
}

fn hellaswag(record: Record) -> Result<(Vec<Choice>, usize), String> {
    let (activity, ctx_a, ctx_b) =
        (record.text("activity_label")?, record.text("ctx_a")?, record.text("ctx_b")?);
    let context = clean(&format!("{activity}: {ctx_a} {}", capitalize(ctx_b)));
    if !context.is_empty() && context.chars().all(|c| c.is_ascii_digit()) {
        // The harness would take it for the number of a choice.
        return Err(format!("the context is the number {context} and nothing else"));
    }
    let endings = strings(record.get("endings")?, "endings")?;
    check_choices(&endings, "endings")?;
    let label = record.get("label")?;
    let gold = match label {
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    };
    match gold {
        // An ending that only cleaning leaves empty counts: its text was there.
        Some(gold) if gold < endings.len() as u64 => {
            Ok((with_context(&context, endings.iter().map(|ending| clean(ending))), gold as usize))
        }
        _ => Err(format!("`label` is {label}, expected the index of one of {} endings", endings.len())),
    }
}

/// The text after the blank is scored after each way of filling it.
fn winogrande(record: Record) -> Result<(Vec<Choice>, usize), String> {
    let (before, after) =
        record.text("sentence")?.split_once('_').ok_or("`sentence` has no blank `_` to be filled")?;
    let after = strip(after);
    let filled = |key| Ok::<_, String>(Choice::new(format!("{before}{}", record.choice(key)?), after));
    let choices = vec![filled("option1")?, filled("option2")?];
    match record.get("answer")?.as_str() {
        Some("1") => Ok((choices, 0)),
        Some("2") => Ok((choices, 1)),
        _ => Err(format!("`answer` is {}, expected \"1\" or \"2\"", record.0["answer"])),
    }
}

/// HellaSwag's cleaning: removes the markup of the how-to site that the texts come from.
fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        cleaned += &rest[..open];
        rest = &rest[open..];
        // Up to the next closing bracket on the same line; without one the bracket stays.
        match rest.find([']', '\n']) {
            Some(close) if rest[close..].starts_with(']') => rest = &rest[close + 1..],
            _ => {
                cleaned.push('[');
                rest = &rest[1..];
            }
        }
    }
    cleaned += rest;
    cleaned.replace("  ", " ")
}

/// The fields of a document.
#[derive(Clone, Copy)]
struct Record<'a>(&'a Map<String, Value>);

impl<'a> Record<'a> {
    fn get(self, key: &str) -> Result<&'a Value, String> {
        match self.0.get(key) {
            None => Err(format!("`{key}` is missing")),
            Some(Value::Null) => Err(format!("`{key}` is null")),
            Some(value) => Ok(value),
        }
    }

    fn text(self, key: &str) -> Result<&'a str, String> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| format!("`{key}` is {value}, expected a string"))
    }

    fn choice(self, key: &str) -> Result<&'a str, String> {
        match self.text(key)? {
            "" => Err(format!("`{key}` is empty")),
            text => Ok(text),
        }
    }

    fn binary(self, key: &str) -> Result<usize, String> {
        let value = self.get(key)?;
        match value.as_u64() {
            Some(label @ 0..=1) => Ok(label as usize),
            _ => Err(format!("`{key}` is {value}, expected 0 or 1")),
        }
    }

    /// The texts of `choices`, and the index of the first whose label is `key`.
    fn labelled_choices(self, key: &str) -> Result<(Vec<&'a str>, usize), String> {
        let choices = self.get("choices")?;
        let part = |name: &str| strings(&choices[name], &format!("choices.{name}"));
        let (texts, labels) = (part("text")?, part("label")?);
        if texts.len() != labels.len() {
            return Err(format!("`choices` has {} texts, but {} labels", texts.len(), labels.len()));
        }
        check_choices(&texts, "choices.text")?;
        let gold = labels
            .iter()
            .position(|&label| label == key)
            .ok_or_else(|| format!("`answerKey` is {key:?}, expected one of {labels:?}"))?;
        Ok((texts, gold))
    }
}

fn strings<'a>(value: &'a Value, name: &str) -> Result<Vec<&'a str>, String> {
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    list.ok_or_else(|| match value {
        Value::Null => format!("`{name}` is missing"),
        _ => format!("`{name}` is {value}, expected a list of strings"),
    })
}

fn check_choices(texts: &[&str], name: &str) -> Result<(), String> {
    if texts.is_empty() {
        return Err(format!("`{name}` has no choices"));
    }
    match texts.iter().position(|text| text.is_empty()) {
        Some(i) => Err(format!("`{name}[{i}]` is empty")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn cleaning() {
        for (text, expected) in [
            // Stripped first, so that no space is left before the mark.
            (" [title] x", " x"),
            ("[title] x", " x"),
            ("a [title] x", "a. x"),
            ("[a [b] c]", " c]"),
            ("[a\nb] [c]d", "[a\nb] d"),
            ("They rest [step]", "They rest "),
            ("a   b    c", "a  b  c"),
            ("[open", "[open"),
        ] {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }
}
