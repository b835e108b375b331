fn main() {
    for p in std::fs::read_dir("fixtures/golden").unwrap() {
        let p = p.unwrap().path();
        for r in [
            duogpt::verify::golden::verify_file::<f64>(&p).unwrap(),
            duogpt::verify::golden::verify_file::<f32>(&p).unwrap(),
        ] {
            println!("{} {:?} {:?}", p.display(), r.kind, r.skipped);
            for s in r.stages {
                println!(
                    "   {:30} {:9.2e} / {:9.2e} {} {:?} {:?}",
                    s.name,
                    s.error,
                    s.budget,
                    s.passed,
                    s.place.filter(|_| !s.passed),
                    s.note
                );
            }
        }
    }
}
