//! White space and title case as Python defines them, which the templates depend on.

/// What `str.strip()` removes: the separators U+001C to U+001F besides Unicode's white space.
pub fn is_white_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// The text without the white space at both ends.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_white_space)
}

/// The first character in title case, all others in lower case.
pub fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // The whole is lowered, not the tail: what becomes of a final sigma depends on the letters before it.
    let lower = text.to_lowercase();
    let tail = lower.chars().skip(first.to_lowercase().count());
    title_case(first).chars().chain(tail).collect()
}

/// Title case is upper case except for ligatures, digraphs, Georgian, and Greek with iota subscript.
fn title_case(c: char) -> String {
    let special = match c {
        'ß' => "Ss",
        'և' => "\u{535}\u{582}",
        '\u{FB00}' => "Ff",
        '\u{FB01}' => "Fi",
        '\u{FB02}' => "Fl",
        '\u{FB03}' => "Ffi",
        '\u{FB04}' => "Ffl",
        '\u{FB05}' | '\u{FB06}' => "St",
        '\u{FB13}' => "\u{544}\u{576}",
        '\u{FB14}' => "\u{544}\u{565}",
        '\u{FB15}' => "\u{544}\u{56B}",
        '\u{FB16}' => "\u{54E}\u{576}",
        '\u{FB17}' => "\u{544}\u{56D}",
        '\u{1C4}'..='\u{1C6}' => "\u{1C5}",
        '\u{1C7}'..='\u{1C9}' => "\u{1C8}",
        '\u{1CA}'..='\u{1CC}' => "\u{1CB}",
        '\u{1F1}'..='\u{1F3}' => "\u{1F2}",
        '\u{1FB3}' | '\u{1FBC}' => "\u{1FBC}",
        '\u{1FC3}' | '\u{1FCC}' => "\u{1FCC}",
        '\u{1FF3}' | '\u{1FFC}' => "\u{1FFC}",
        '\u{1FB2}' => "\u{1FBA}\u{345}",
        '\u{1FB4}' => "\u{386}\u{345}",
        '\u{1FB7}' => "\u{391}\u{342}\u{345}",
        '\u{1FC2}' => "\u{1FCA}\u{345}",
        '\u{1FC4}' => "\u{389}\u{345}",
        '\u{1FC7}' => "\u{397}\u{342}\u{345}",
        '\u{1FF2}' => "\u{1FFA}\u{345}",
        '\u{1FF4}' => "\u{38F}\u{345}",
        '\u{1FF7}' => "\u{3A9}\u{342}\u{345}",
        '\u{10D0}'..='\u{10FA}' | '\u{10FD}'..='\u{10FF}' => return c.into(),
        '\u{1F80}'..='\u{1FAF}' => return char::from_u32(c as u32 | 8).into_iter().collect(),
        _ => return c.to_uppercase().collect(),
    };
    special.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitals_are_pythons() {
        for (text, expected) in [
            ("", ""),
            ("he Goes to PARIS", "He goes to paris"),
            ("ΟΔΥΣΣΕΑΣ", "Οδυσσεας"),
            ("ΑΣ", "Ας"),
            ("İSTANBUL", "İstanbul"),
            ("aİ", "Ai\u{307}"),
            ("ßA", "Ssa"),
            ("ﬁRE", "Fire"),
            ("\u{1C6}A", "\u{1C5}a"),
            ("\u{1F80}", "\u{1F88}"),
            ("\u{1FB4}", "\u{386}\u{345}"),
            ("\u{10D0}\u{10D1}", "\u{10D0}\u{10D1}"),
        ] {
            assert_eq!(capitalize(text), expected, "{text:?}");
        }
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(strip("\u{1C}\u{A0}\u{3000} a\u{200B}\n\u{1F}"), "a\u{200B}");
    }
}
