//! Quoting for a POSIX shell, so that a printed command can be pasted.

/// The word as a shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The words as one line.
pub(crate) fn line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_plain() {
        assert_eq!(
            line(["qemu", "-M", "virt,its=on", "a/b.img"]),
            "qemu -M virt,its=on a/b.img"
        );
    }

    #[test]
    fn a_shell_reads_every_word_back() {
        let words = [
            "", "a b", "it's", "$HOME", "`x`", "a\\b", "*", "\"q\"", "#", "a;b", "~", "é\n",
        ];
        let script = format!("printf '%s\\0' {}", line(words));
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        let back: Vec<&str> = std::str::from_utf8(&output.stdout)
            .unwrap()
            .split_terminator('\0')
            .collect();
        assert_eq!(back, words);
    }
}
