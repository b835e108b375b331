//! How far a command is: a bar on a terminal, lines elsewhere. Both go to stderr, so that stdout holds results alone.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::progress::Observer;

/// The longest time without a line, where lines are printed: a step may take hours.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Shows how far a command is, with the time that is left. On a terminal a bar moves; in a log or in CI there is a line
/// for every finished step, and one from time to time during a long one.
pub struct Progress {
    title: String,
    bar: ProgressBar,
    /// Where there is no terminal for the bar.
    log: Option<Log>,
    /// Prints results on the way to stdout.
    results: bool,
}

/// Lines instead of a bar.
struct Log {
    heartbeat: Duration,
    state: Mutex<LogState>,
    write: Box<dyn Fn(&str) + Send + Sync>,
}

struct LogState {
    stage: String,
    last_line: Instant,
}

impl Progress {
    /// Progress under a title. With `results`, results on the way (such as every pruned linear) go to stdout.
    pub fn new(title: &str, results: bool) -> Self {
        let bar = ProgressBar::no_length().with_message(title.to_string());
        // A reader that has gone is no reason to stop the work.
        let write = |line: &str| drop(writeln!(io::stderr(), "{line}"));
        let log = bar.is_hidden().then(|| Log::new(HEARTBEAT, Box::new(write)));
        let style =
            ProgressStyle::with_template("{msg} [{bar:32}] {percent:>3} %  {elapsed} elapsed, {eta} left")
                .expect("the template is a constant");
        bar.set_style(style.progress_chars("=> "));
        Progress { title: title.to_string(), bar, log, results }
    }

    /// Prints to stdout, above the bar.
    pub fn print(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// What was done, and how far the whole is.
    fn line(&self, what: &str) -> String {
        let mut line = format!("{}: {what}", self.title);
        if let Some(total @ 1..) = self.bar.length() {
            let percent = 100 * self.bar.position().min(total) / total;
            let [elapsed, left] = [self.bar.elapsed(), self.bar.eta()].map(HumanDuration);
            let _ = write!(line, " ({percent} %, {elapsed:#} elapsed, {left:#} left)");
        }
        line
    }
}

impl Log {
    fn new(heartbeat: Duration, write: Box<dyn Fn(&str) + Send + Sync>) -> Self {
        let state = LogState { stage: "at work".into(), last_line: Instant::now() };
        Log { heartbeat, state: Mutex::new(state), write }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.state.lock().expect("no observer panics")
    }

    /// The stage, where it is time for a line about it.
    fn overdue(&self) -> Option<String> {
        let mut state = self.state();
        let overdue = state.last_line.elapsed() >= self.heartbeat;
        overdue.then(|| {
            state.last_line = Instant::now();
            state.stage.clone()
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn begin(&self, total: u64) {
        self.bar.reset();
        self.bar.set_length(total);
    }

    fn advance(&self) {
        self.bar.inc(1);
        if let Some(log) = &self.log
            && let Some(stage) = log.overdue()
        {
            (log.write)(&self.line(&stage));
        }
    }

    fn stage(&self, name: &str) {
        self.bar.set_message(name.to_string());
        if let Some(log) = &self.log {
            log.state().stage = name.to_string();
        }
    }

    fn finished(&self, step: &str) {
        if let Some(log) = &self.log {
            log.state().last_line = Instant::now();
            (log.write)(&self.line(&format!("finished {step}")));
        }
    }

    fn result(&self, line: &str) {
        if self.results {
            self.print(line);
        }
    }

    fn warning(&self, text: &str) {
        self.bar.suspend(|| eprintln!("warning: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Progress that is no terminal's, and its lines.
    fn logged(heartbeat: Duration) -> (Progress, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let write = Box::new(move |line: &str| sink.lock().unwrap().push(line.to_string()));
        let (bar, log) = (ProgressBar::hidden(), Some(Log::new(heartbeat, write)));
        (Progress { title: "work".into(), bar, log, results: false }, lines)
    }

    /// A line without its times.
    fn beginnings(lines: &Mutex<Vec<String>>) -> Vec<String> {
        let lines = lines.lock().unwrap();
        let beginning = |line: &String| {
            let (beginning, times) = line.split_once(" %, ").expect("a line says how far the whole is");
            assert!(times.contains(" elapsed, ") && times.ends_with(" left)"), "{line}");
            beginning.to_string()
        };
        lines.iter().map(beginning).collect()
    }

    #[test]
    fn a_finished_step_has_a_line_and_a_short_one_no_other() {
        let (progress, lines) = logged(Duration::MAX);
        progress.begin(8);
        progress.stage("the first step");
        (0..2).for_each(|_| progress.advance());
        progress.finished("the first step");
        (0..6).for_each(|_| progress.advance());
        progress.finished("the second step");
        assert_eq!(
            beginnings(&lines),
            ["work: finished the first step (25", "work: finished the second step (100"]
        );
    }

    #[test]
    fn a_long_step_has_lines_before_it_is_finished() {
        let (progress, lines) = logged(Duration::ZERO);
        progress.begin(4);
        progress.advance();
        progress.stage("the second step");
        progress.advance();
        assert_eq!(beginnings(&lines), ["work: at work (25", "work: the second step (50"]);
    }

    #[test]
    fn a_line_before_the_work_is_counted_says_nothing_of_its_length() {
        let (progress, lines) = logged(Duration::MAX);
        progress.finished("opening");
        progress.begin(0);
        progress.finished("nothing");
        assert_eq!(*lines.lock().unwrap(), ["work: finished opening", "work: finished nothing"]);
    }
}
