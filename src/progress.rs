//! The progress of a long computation: what it reports, and how one of its steps reports as a part of the whole.

use std::sync::Mutex;

/// Hears how far a long computation is. By default it ignores what it hears.
pub trait Observer: Sync {
    /// Units of work in all; comes first.
    fn begin(&self, total: u64) {
        let _ = total;
    }
    /// One more unit is done.
    fn advance(&self) {}
    /// What follows is another part of the work.
    fn stage(&self, name: &str) {
        let _ = name;
    }
    /// A step of the work is finished, such as a layer.
    fn finished(&self, step: &str) {
        let _ = step;
    }
    /// A result on the way, such as a pruned linear and its error, in one line.
    fn result(&self, line: &str) {
        let _ = line;
    }
    /// Something that does not stop the work, but should be known.
    fn warning(&self, text: &str) {
        let _ = text;
    }
}

/// Ignores everything.
pub struct Silent;
impl Observer for Silent {}

/// One step of a longer work: whatever the step counts as its own progress becomes `units` of the whole. The steps
/// that it has itself are not passed on.
pub(crate) struct Portion<'a> {
    whole: &'a dyn Observer,
    units: u64,
    name: String,
    /// Of the step: its total, how much is done, and units that the whole has heard of.
    state: Mutex<(u64, u64, u64)>,
}

impl<'a> Portion<'a> {
    /// A step with this name, which is the stage of the whole from now on.
    pub(crate) fn new(whole: &'a dyn Observer, units: u64, name: String) -> Self {
        whole.stage(&name);
        Portion { whole, units, name, state: Mutex::new((1, 0, 0)) }
    }

    /// Ends a step that was successful.
    pub(crate) fn finish(mut self) {
        self.fill();
        self.whole.finished(&self.name);
    }

    /// A step that ended has taken its time, however much it counted.
    fn fill(&mut self) {
        let (_, _, heard) = self.state.get_mut().expect("no observer panics");
        (*heard..self.units).for_each(|_| self.whole.advance());
        *heard = self.units;
    }
}

impl Observer for Portion<'_> {
    fn begin(&self, total: u64) {
        self.state.lock().expect("no observer panics").0 = total.max(1);
    }

    fn advance(&self) {
        let mut state = self.state.lock().expect("no observer panics");
        state.1 += 1;
        let reached = (self.units * state.1 / state.0).min(self.units);
        (state.2..reached).for_each(|_| self.whole.advance());
        state.2 = reached;
    }

    fn result(&self, line: &str) {
        self.whole.result(line);
    }

    fn warning(&self, text: &str) {
        self.whole.warning(text);
    }
}

impl Drop for Portion<'_> {
    fn drop(&mut self) {
        self.fill();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// What a whole hears: units, and the names of stages and finished steps.
    #[derive(Default)]
    struct Heard {
        units: AtomicU64,
        names: Mutex<Vec<String>>,
    }

    impl Observer for Heard {
        fn advance(&self) {
            self.units.fetch_add(1, Ordering::Relaxed);
        }

        fn stage(&self, name: &str) {
            self.names.lock().unwrap().push(format!("stage {name}"));
        }

        fn finished(&self, step: &str) {
            let units = self.units.load(Ordering::Relaxed);
            self.names.lock().unwrap().push(format!("finished {step} at {units}"));
        }
    }

    #[test]
    fn a_step_fills_its_portion_of_the_whole() {
        for (units, total, advanced, expected) in
            [(3, 7, 7, 3), (7, 3, 2, 4), (5, 5, 0, 0), (4, 0, 3, 4), (2, 3, 9, 2), (1, 1000, 999, 0)]
        {
            let heard = Heard::default();
            let portion = Portion::new(&heard, units, "step".into());
            portion.begin(total);
            (0..advanced).for_each(|_| portion.advance());
            assert_eq!(heard.units.load(Ordering::Relaxed), expected, "{advanced} of {total} for {units}");
            drop(portion);
            assert_eq!(heard.units.load(Ordering::Relaxed), units, "a step that ended counts whole");
            assert_eq!(*heard.names.lock().unwrap(), ["stage step"], "a step that was left is not finished");
        }
    }

    #[test]
    fn a_finished_step_is_named_after_its_last_unit_and_once() {
        let heard = Heard::default();
        let portion = Portion::new(&heard, 3, "step".into());
        portion.begin(10);
        portion.advance();
        portion.finished("a part of the step");
        portion.finish();
        assert_eq!(*heard.names.lock().unwrap(), ["stage step", "finished step at 3"]);
        assert_eq!(heard.units.load(Ordering::Relaxed), 3);
    }
}
