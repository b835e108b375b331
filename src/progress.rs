//! How far a long computation is: what it tells, and how a step of it tells the whole.

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

/// One step of a longer work: whatever the step counts as its own progress becomes `units` of the whole. Of the steps
/// that it has itself the whole hears nothing.
pub(crate) struct Portion<'a> {
    whole: &'a dyn Observer,
    units: u64,
    /// Of the step: its total, how much is done, and units that the whole has heard of.
    state: Mutex<(u64, u64, u64)>,
}

impl<'a> Portion<'a> {
    /// A step that has not begun. When it is dropped, the whole has heard of all its `units`.
    pub(crate) fn new(whole: &'a dyn Observer, units: u64) -> Self {
        Portion { whole, units, state: Mutex::new((1, 0, 0)) }
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
    /// A step that is left has taken its time.
    fn drop(&mut self) {
        let (_, _, heard) = *self.state.get_mut().expect("no observer panics");
        (heard..self.units).for_each(|_| self.whole.advance());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Count(AtomicU64);

    impl Observer for Count {
        fn advance(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_step_fills_its_portion_of_the_whole() {
        for (units, total, advanced, heard) in
            [(3, 7, 7, 3), (7, 3, 2, 4), (5, 5, 0, 0), (4, 0, 3, 4), (2, 3, 9, 2), (1, 1000, 999, 0)]
        {
            let count = Count(AtomicU64::new(0));
            let portion = Portion::new(&count, units);
            portion.begin(total);
            (0..advanced).for_each(|_| portion.advance());
            assert_eq!(count.0.load(Ordering::Relaxed), heard, "{advanced} of {total} for {units}");
            drop(portion);
            assert_eq!(count.0.load(Ordering::Relaxed), units, "a step that ended counts whole");
        }
    }
}
