//! What simulated workloads run: a shell with a handful of commands.
//!
//! `echo` (with `>`, `>>`, `>&2`), `cat`, `ls`, `rm`, `touch`, `pwd`, `hostname`, `whoami`, `id`, `env`,
//! `uname`, `nproc`, `date`, `seq`, `true`, `false`, `sleep`, `exit`; joined by `;`, `&&`, `||` and line ends.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::Files;
use crate::units::Timestamp;

/// What a command sees around it.
pub(super) struct Surroundings<'a> {
    pub(super) files: &'a mut Files,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) working_dir: &'a str,
    pub(super) now: Timestamp,
    pub(super) cpus: u32,
    pub(super) size: Option<(u16, u16)>,
}

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) code: i64,
    /// How long it takes to end.
    pub(super) takes: Duration,
    /// Whether the shell ends with it.
    pub(super) exits: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    Always,
    And,
    Or,
}

/// A command and how it hangs on the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    join: Join,
    words: Vec<String>,
}

impl Statement {
    /// Whether it runs after a command that ended with `last`.
    pub(super) fn runs_after(&self, last: i64) -> bool {
        match self.join {
            Join::Always => true,
            Join::And => last == 0,
            Join::Or => last != 0,
        }
    }
}

/// Whether the simulation knows how to run this program; what it does not know goes on until it is stopped.
pub(super) fn knows(program: &str) -> bool {
    const KNOWN: [&str; 20] = [
        "echo", "cat", "ls", "rm", "touch", "pwd", "hostname", "whoami", "id", "env", "uname", "nproc",
        "date", "seq", "true", "false", "sleep", "exit", "stty", "printf",
    ];
    KNOWN.contains(&program)
}

/// Takes a program and its arguments as a script: what follows `sh -c`, or the words themselves.
pub(super) fn script_of(argv: &[String]) -> Option<Vec<Statement>> {
    match argv {
        [shell, flag, script, ..] if is_shell(shell) && flag == "-c" => Some(parse(script)),
        [program, ..] if knows(program) => Some(vec![Statement {
            join: Join::Always,
            words: argv.to_vec(),
        }]),
        _ => None,
    }
}

pub(super) fn is_shell(program: &str) -> bool {
    matches!(
        program,
        "sh" | "/bin/sh" | "bash" | "/bin/bash" | "ash" | "/bin/ash"
    )
}

/// Cuts a script into statements. Quotes hold words together; a backslash takes the next character as it is.
pub(super) fn parse(script: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut current = Statement {
        join: Join::Always,
        words: Vec::new(),
    };
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut rest = script.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(rest.next()),
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '>') => {
                current.words.extend(word.take());
                let mut operator = ">".to_owned();
                if let Some(next) = rest.next_if(|n| matches!(n, '>' | '&')) {
                    operator.push(next);
                }
                if operator == ">&" {
                    operator.extend(rest.next());
                }
                current.words.push(operator);
            }
            (None, ';' | '\n') | (None, '&' | '|') => {
                current.words.extend(word.take());
                let doubled = rest.next_if_eq(&c).is_some();
                let join = match (c, doubled) {
                    ('&', true) => Join::And,
                    ('|', true) => Join::Or,
                    _ => Join::Always,
                };
                let done = std::mem::replace(
                    &mut current,
                    Statement {
                        join,
                        words: Vec::new(),
                    },
                );
                if !done.words.is_empty() {
                    statements.push(done);
                }
            }
            (None, _) if c.is_whitespace() => current.words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    current.words.extend(word);
    if !current.words.is_empty() {
        statements.push(current);
    }
    statements
}

/// Runs one statement.
pub(super) fn run(statement: &Statement, around: &mut Surroundings<'_>) -> Done {
    let mut words = statement.words.clone();
    let redirect = words
        .iter()
        .position(|w| w.starts_with('>'))
        .map(|at| words.split_off(at));
    let words: Vec<String> = words.iter().map(|w| expand(w, &around.environment)).collect();
    let mut done = command(&words, around);
    match redirect.as_deref() {
        None => {}
        Some([to, ..]) if to == ">&2" => done.stderr = std::mem::take(&mut done.stdout) + &done.stderr,
        Some([how, file, ..]) => {
            let path = absolute(file, around.working_dir);
            let text = std::mem::take(&mut done.stdout);
            let old = around.files.remove(&path).filter(|_| how == ">>");
            around.files.insert(path, old.unwrap_or_default() + &text);
        }
        Some(_) => {
            done = failed(2, "sh: syntax error: unexpected end of command\n".to_owned());
        }
    }
    done
}

fn expand(word: &str, environment: &BTreeMap<String, String>) -> String {
    match word.strip_prefix('$') {
        Some(name) if !name.is_empty() => environment.get(name).cloned().unwrap_or_default(),
        _ => word.to_owned(),
    }
}

fn absolute(path: &str, working_dir: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", working_dir.trim_end_matches('/'))
    }
}

fn said(stdout: String) -> Done {
    Done {
        stdout,
        ..Done::default()
    }
}

fn failed(code: i64, stderr: String) -> Done {
    Done {
        stderr,
        code,
        ..Done::default()
    }
}

fn command(words: &[String], around: &mut Surroundings<'_>) -> Done {
    let Some((program, arguments)) = words.split_first() else {
        return Done::default();
    };
    let first = arguments.first().map(String::as_str);
    match program.as_str() {
        "echo" => match first {
            Some("-n") => said(arguments[1..].join(" ")),
            _ => said(arguments.join(" ") + "\n"),
        },
        "printf" => said(first.unwrap_or_default().replace("\\n", "\n")),
        "cat" => cat(arguments, around),
        "ls" => {
            let names = around.files.keys().map(|f| format!("{f}\n"));
            said(names.collect())
        }
        "rm" => {
            for file in arguments {
                around.files.remove(&absolute(file, around.working_dir));
            }
            Done::default()
        }
        "touch" => {
            for file in arguments {
                around
                    .files
                    .entry(absolute(file, around.working_dir))
                    .or_default();
            }
            Done::default()
        }
        "pwd" => said(format!("{}\n", around.working_dir)),
        "hostname" => said(around.files.get("/etc/hostname").cloned().unwrap_or_default()),
        "whoami" => said("root\n".to_owned()),
        "id" => said("uid=0(root) gid=0(root)\n".to_owned()),
        "env" => said(
            around
                .environment
                .iter()
                .map(|(k, v)| format!("{k}={v}\n"))
                .collect(),
        ),
        "uname" => said("Linux\n".to_owned()),
        "nproc" => said(format!("{}\n", around.cpus)),
        "date" => said(format!("{}\n", around.now)),
        "stty" => match around.size {
            Some((width, height)) => said(format!("{height} {width}\n")),
            None => failed(1, "stty: standard input is not a terminal\n".to_owned()),
        },
        "seq" => match first.and_then(|n| n.parse::<u32>().ok()) {
            Some(last) => said((1..=last.min(1_000_000)).map(|n| format!("{n}\n")).collect()),
            None => failed(1, "seq: not a number\n".to_owned()),
        },
        "true" => Done::default(),
        "false" => failed(1, String::new()),
        "sleep" => sleep(first),
        "exit" => Done {
            code: first.and_then(|c| c.parse::<i64>().ok()).map_or(0, |c| c & 0xff),
            exits: true,
            ..Done::default()
        },
        other => failed(127, format!("sh: {other}: not found\n")),
    }
}

fn cat(arguments: &[String], around: &Surroundings<'_>) -> Done {
    let mut done = Done::default();
    for file in arguments {
        match around.files.get(&absolute(file, around.working_dir)) {
            Some(text) => done.stdout.push_str(text),
            None => {
                done.stderr
                    .push_str(&format!("cat: {file}: No such file or directory\n"));
                done.code = 1;
            }
        }
    }
    done
}

fn sleep(argument: Option<&str>) -> Done {
    if argument == Some("infinity") {
        return Done {
            takes: Duration::from_secs(100 * 365 * 86_400),
            ..Done::default()
        };
    }
    let seconds = argument.and_then(|s| s.trim_end_matches('s').parse::<f64>().ok());
    match seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        Some(takes) => Done {
            takes,
            ..Done::default()
        },
        None => failed(1, "sleep: invalid time interval\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (String, String, i64) {
        let mut files = Files::new();
        let mut all = Done::default();
        for statement in parse(script) {
            if !statement.runs_after(all.code) {
                continue;
            }
            let mut around = Surroundings {
                files: &mut files,
                environment: BTreeMap::from([("A".to_owned(), "b c".to_owned())]),
                working_dir: "/",
                now: Timestamp::from_millis(0),
                cpus: 2,
                size: None,
            };
            let done = run(&statement, &mut around);
            all.stdout.push_str(&done.stdout);
            all.stderr.push_str(&done.stderr);
            all.code = done.code;
            if done.exits {
                break;
            }
        }
        (all.stdout, all.stderr, all.code)
    }

    #[test]
    fn commands_do_what_they_do_elsewhere() {
        let is = |script: &str, stdout: &str, stderr: &str, code: i64| {
            assert_eq!(
                shell(script),
                (stdout.to_owned(), stderr.to_owned(), code),
                "{script}"
            );
        };
        is("echo hello", "hello\n", "", 0);
        is("echo 'a  b' \"c;d\" $A", "a  b c;d b c\n", "", 0);
        is("exit 3", "", "", 3);
        is("exit 3; echo no", "", "", 3);
        is("nosuch", "", "sh: nosuch: not found\n", 127);
        is("echo x > f; echo y >> f; cat f", "x\ny\n", "", 0);
        is("echo x >f && cat /f", "x\n", "", 0);
        is("echo oops >&2; false", "", "oops\n", 1);
        is("false && echo no || echo yes", "yes\n", "", 0);
        is("true; seq 3\npwd", "1\n2\n3\n/\n", "", 0);
        is("cat nosuch", "", "cat: nosuch: No such file or directory\n", 1);
        is("", "", "", 0);
    }
}
