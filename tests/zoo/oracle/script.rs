//! Operations as they are written down: a file a group, in `operations/`.
//!
//! ```text
//! # A comment.
//! @file NAME <<END                a file in the folder that all operations run in
//! @until REGEX                    the next operation is repeated until it prints that
//! @capture NAME [REGEX]           what it prints (or the first group in it) is ${NAME} from then on, and is not compared
//! @editor SCRIPT                  its KUBE_EDITOR is that script of sed
//! @background NAME REGEX          it goes on beside the next ones once it has printed that
//! @sorted                         the order of its lines is not compared
//! @last                           only the last line is compared: those before it tell what was waited for
//! @distinct                       a line that is told again at once is compared once
//! @untold                         what it prints is not compared
//! @exits                          what it prints is not compared, but whether it fails is
//! $ create namespace 'a b' <<END  kubectl's arguments in shell's quotes, and its standard input
//! @finish NAME REGEX              the one in the background ends as soon as it has printed that
//! ```
//!
//! Invariant: both sides do the same steps; only what they captured differs.

use regex::Regex;

/// A line that says `@END` alone would be too easy to miss, so each text names its own end.
const TEXT: &str = " <<";

/// What is done next.
#[derive(Debug)]
pub(super) enum Step {
    File { name: String, text: String },
    Run(Operation),
    Finish { line: usize, name: String, until: Regex, options: Options },
}

/// One call of kubectl.
#[derive(Debug)]
pub(super) struct Operation {
    /// Where it is in its file.
    pub(super) line: usize,
    /// As it is written.
    pub(super) text: String,
    pub(super) arguments: Vec<String>,
    pub(super) input: Option<String>,
    pub(super) options: Options,
}

/// The lines with `@` before an operation.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) until: Option<Regex>,
    pub(super) capture: Option<(String, Option<Regex>)>,
    pub(super) editor: Option<String>,
    pub(super) background: Option<(String, Regex)>,
    pub(super) sorted: bool,
    pub(super) last: bool,
    pub(super) distinct: bool,
    pub(super) untold: bool,
    pub(super) exits: bool,
}

/// Reads a file of operations.
///
/// # Panics
/// When it is not written as above: it is part of this program.
pub(super) fn parse(text: &str) -> Vec<Step> {
    let mut lines = text.lines().enumerate().map(|(place, line)| (place + 1, line));
    let mut steps = Vec::new();
    let mut options = Options::default();
    while let Some((line, content)) = lines.next() {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (content, end) = content.split_once(TEXT).map_or((content, None), |(before, end)| (before, Some(end)));
        let input = end.map(|end| {
            let mut text = String::new();
            loop {
                let (_, content) = lines.next().unwrap_or_else(|| panic!("line {line}: no {end}"));
                if content == end {
                    break text;
                }
                text.push_str(content);
                text.push('\n');
            }
        });
        let (word, rest) = content.split_once(' ').unwrap_or((content, ""));
        let (name, pattern) = rest.split_once(' ').map_or((rest, None), |(name, rest)| (name, Some(rest)));
        let regex = |pattern: &str| Regex::new(pattern).unwrap_or_else(|error| panic!("line {line}: {error}"));
        let needed = || regex(pattern.unwrap_or_else(|| panic!("line {line}: a pattern is missing")));
        match word {
            "$" => steps.push(Step::Run(Operation {
                line,
                text: rest.to_owned(),
                arguments: words(rest),
                input,
                options: std::mem::take(&mut options),
            })),
            "@file" => steps.push(Step::File { name: rest.to_owned(), text: input.expect("a file has a text") }),
            "@until" => options.until = Some(regex(rest)),
            "@capture" => options.capture = Some((name.to_owned(), pattern.map(regex))),
            "@editor" => options.editor = Some(rest.to_owned()),
            "@background" => options.background = Some((name.to_owned(), needed())),
            "@sorted" => options.sorted = true,
            "@last" => options.last = true,
            "@distinct" => options.distinct = true,
            "@untold" => options.untold = true,
            "@exits" => options.exits = true,
            "@finish" => steps.push(Step::Finish {
                line,
                name: name.to_owned(),
                until: needed(),
                options: std::mem::take(&mut options),
            }),
            _ => panic!("line {line}: {content}"),
        }
    }
    steps
}

/// Splits as a shell does: blanks, single and double quotes, no other signs.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for sign in text.chars() {
        match (sign, quote) {
            (_, Some(open)) if sign == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(sign),
        }
    }
    assert!(quote.is_none(), "a quote is open: {text}");
    words.extend(word);
    words
}

/// An example of the format, and of what may be wrong with it.
pub(super) fn self_test() {
    let steps = parse("# No.\n\n@until a b\n$ get 'x y' \"it's\" -o= <<END\none\n\ntwo\nEND\n@finish w done\n");
    let Step::Run(operation) = &steps[0] else { panic!("{steps:?}") };
    assert_eq!(operation.arguments, ["get", "x y", "it's", "-o="]);
    assert_eq!(operation.input.as_deref(), Some("one\n\ntwo\n"));
    assert_eq!((operation.line, operation.options.until.as_ref().unwrap().as_str()), (4, "a b"));
    let Step::Finish { name, until, .. } = &steps[1] else { panic!("{steps:?}") };
    assert_eq!((name.as_str(), until.as_str()), ("w", "done"));
}
