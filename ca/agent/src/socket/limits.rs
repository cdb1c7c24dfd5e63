//! What local callers may take of the agent: every number with its reason.
//!
//! Laws: no user and no process can take everything; whoever does not read, does not finish or does not answer is
//! dropped, and only its own connection with it. Sources: ca/docs/attacks.md §1.4 and §2 (20);
//! ca/docs/performance.md, Results.

use std::time::Duration;

/// The limits of one socket.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections: each costs two descriptors and, idle, some 20 KB.
    pub connections: usize,
    /// Open connections of one user; below [`Self::connections`], so that no user can shut out the others.
    pub connections_per_user: usize,
    /// Open connections of one process. A proxy needs one; a program with a client per library needs a handful.
    pub connections_per_process: usize,
    /// Open streams over all connections: each holds a task and a subscription.
    pub streams: usize,
    /// Open streams of one user.
    pub streams_per_user: usize,
    /// Open streams of one connection. Envoy opens one for each secret.
    pub streams_per_connection: u32,
    /// A connection must have said that it speaks HTTP/2 by then.
    pub preface: Duration,
    /// How long a caller may leave unread what is sent to it.
    pub stall: Duration,
    /// How long a proxy may take to accept or refuse what it was sent, and to ask its first question.
    pub answer: Duration,
    /// How long a Workload API call waits for an agent that has nothing to give yet.
    pub patience: Duration,
    /// How long a unary call, or the beginning of a stream, may take.
    pub call: Duration,
    /// How long open calls may take to end once the agent stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_user: 2048,
            connections_per_process: 64,
            streams: 16_384,
            streams_per_user: 8192,
            streams_per_connection: 256,
            preface: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            patience: Duration::from_secs(5),
            call: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}
