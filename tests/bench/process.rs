//! A process under measurement, and what the kernel says about it. It ends with its owner.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Clock ticks a second in `/proc`: fixed for user space on Linux.
const TICKS: f64 = 100.0;

pub(crate) struct Process(Child);

/// Memory, in MiB.
pub(crate) struct Memory {
    /// All that is resident.
    pub(crate) rss: f64,
    /// The part of it that is the process's own: heap and stacks.
    pub(crate) anonymous: f64,
    /// The part of it that is pages of files: mostly the program's text, which the kernel shares and can drop.
    pub(crate) file: f64,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("the process starts"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("the process")
    }

    /// CPU time so far, user and system, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = self.file("stat");
        // Behind the name in parentheses: fields 14 and 15 of proc(5) are the 12th and 13th from there.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
        (ticks(11) + ticks(12)) / TICKS
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = self.file("status");
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of `status`");
            line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
        };
        Memory { rss: of("VmRSS:"), anonymous: of("RssAnon:"), file: of("RssFile:") }
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.id())).expect("the process runs")
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&mut self) {
        if let Ok(id) = i32::try_from(self.id())
            && let Some(id) = Pid::from_raw(id)
        {
            kill_process(id, Signal::TERM).expect("a child that was not waited for");
        }
        drop(self.0.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
