//! One job's way through the store: what to ask next, and what the reply means. Knows nothing of
//! rings and messages under way; `connection` does that.

use super::Broken;
use crate::limits;
use crate::wire::xenbus::{Answer, Answers, Guard, Job, Node, Path, Step, StoreError, Value, XenbusState};
use crate::wire::xs::{self, Names, NodePath, Request, TransactionId};

/// Requests that one job can need: each attempt begins, reads the guard, does its steps and ends.
pub(super) const REQUESTS: usize = limits::TRANSACTION_TRIES * (limits::JOB_STEPS + 3);

#[derive(Clone, Copy, Debug)]
enum State {
    /// No job, or its end was told.
    Idle,
    /// A transaction is to begin.
    Begin,
    /// The guard is to be read.
    Guard,
    /// This step is to be done.
    Step(usize),
    /// The transaction is to be committed.
    Commit,
    /// The transaction is to be dropped, for this reason.
    Abort(StoreError),
    /// The job has ended, but that was not told yet.
    Done(Result<(), StoreError>),
}

/// The job at hand, or what the last one brought.
#[derive(Debug)]
pub(super) struct Run {
    job: Job,
    state: State,
    transaction: TransactionId,
    /// Requests that were asked and have no reply yet.
    under_way: usize,
    attempts: usize,
    answers: Answers,
    listing: Names,
}

impl Run {
    /// Nothing to do.
    pub(super) fn new() -> Self {
        Self {
            job: Job::new(&Path::new()),
            state: State::Idle,
            transaction: TransactionId::NONE,
            under_way: 0,
            attempts: 0,
            answers: Answers::new(),
            listing: Names::new(),
        }
    }

    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Takes a job; what the one before brought is forgotten.
    ///
    /// # Panics
    /// When a guarded job has watches: the store cannot undo them with the transaction.
    pub(super) fn start(&mut self, job: Job) {
        let watches = job.steps.iter().any(|step| matches!(step, Step::Watch(..) | Step::Unwatch(..)));
        assert!(job.guard.is_none() || !watches, "watches are no part of transactions");
        self.job = job;
        self.attempts = 0;
        self.begin();
    }

    /// What is to be asked next, and in which transaction; nothing when the job has ended, or what comes next depends on
    /// the replies to what is under way. Steps that stand alone do not.
    pub(super) fn request(&self) -> Option<(Request<'_>, TransactionId)> {
        if self.under_way > 0 && self.job.guard.is_some() {
            return None;
        }
        let request = match self.state {
            State::Idle | State::Done(_) => return None,
            State::Begin => Request::TransactionStart,
            State::Guard => Request::Read(self.at(&self.job.guard.as_ref()?.node)),
            State::Step(index) => self.step_request(self.job.steps.get(index + self.under_way)?),
            State::Commit => Request::TransactionEnd { commit: true },
            State::Abort(_) => Request::TransactionEnd { commit: false },
        };
        Some((request, self.transaction))
    }

    /// That request was asked.
    pub(super) const fn asked(&mut self) {
        self.under_way += 1;
    }

    /// Takes the reply to the first request that is under way.
    ///
    /// # Errors
    /// The reply that began a transaction names none.
    pub(super) fn reply(&mut self, reply: Result<&[u8], StoreError>) -> Result<(), Broken> {
        self.under_way -= 1;
        match self.state {
            // Nothing was asked, and the connection lets no reply through then.
            State::Idle | State::Done(_) => {}
            State::Begin => match reply {
                Ok(payload) => {
                    self.transaction = xs::transaction_id(payload).ok_or(Broken::Payload)?;
                    self.state = State::Guard;
                }
                Err(error) => self.fail(error),
            },
            State::Guard => match self.check_guard(reply) {
                Ok(()) => self.proceed(0),
                Err(error) => self.state = State::Abort(error),
            },
            State::Step(index) => match self.answer(index, reply) {
                Err(error) if self.job.guard.is_some() => self.state = State::Abort(error),
                answer => {
                    self.answers.push(answer).expect("a job has room for an answer a step");
                    self.proceed(index + 1);
                }
            },
            State::Commit => match reply {
                Ok(_) => self.state = State::Done(Ok(())),
                Err(error) => self.fail(error),
            },
            State::Abort(error) => self.fail(error),
        }
        Ok(())
    }

    /// The job's result, once.
    pub(super) fn take_result(&mut self) -> Option<Result<(), StoreError>> {
        let State::Done(result) = self.state else { return None };
        self.state = State::Idle;
        Some(result)
    }

    pub(super) const fn answers(&self) -> &Answers {
        &self.answers
    }

    pub(super) fn listing(&self) -> impl Iterator<Item = &str> {
        self.listing.split('\0').filter(|name| !name.is_empty())
    }

    /// Starts an attempt.
    fn begin(&mut self) {
        self.attempts += 1;
        self.transaction = TransactionId::NONE;
        self.answers.clear();
        self.listing.clear();
        match self.job.guard {
            Some(_) => self.state = State::Begin,
            None => self.proceed(0),
        }
    }

    /// Goes on with this step, or ends when there is none.
    fn proceed(&mut self, index: usize) {
        self.state = if index < self.job.steps.len() {
            State::Step(index)
        } else if self.job.guard.is_some() {
            State::Commit
        } else {
            State::Done(Ok(()))
        };
    }

    /// Ends an attempt that came to nothing, its transaction being over.
    fn fail(&mut self, error: StoreError) {
        if error == StoreError::Again && self.attempts < limits::TRANSACTION_TRIES {
            self.begin();
            return;
        }
        self.answers.clear();
        self.listing.clear();
        self.state = State::Done(Err(error));
    }

    fn at<'a>(&'a self, node: &'a Node) -> NodePath<'a> {
        NodePath { base: &self.job.base, node }
    }

    fn step_request<'a>(&'a self, step: &'a Step) -> Request<'a> {
        match step {
            Step::Read(node) => Request::Read(self.at(node)),
            Step::Write(node, value) => Request::Write(self.at(node), value),
            Step::Remove(node) => Request::Rm(self.at(node)),
            Step::List(node) => Request::Directory(self.at(node)),
            Step::Watch(node, token) => Request::Watch(self.at(node), token),
            Step::Unwatch(node, token) => Request::Unwatch(self.at(node), token),
        }
    }

    fn answer(&mut self, index: usize, reply: Result<&[u8], StoreError>) -> Answer {
        match &self.job.steps[index] {
            Step::Read(_) => return xs::value(reply?),
            Step::List(_) => self.listing = xs::names(reply?)?,
            // Where even the parent is missing, oxenstored is content and C xenstored says ENOENT.
            Step::Remove(_) if reply == Err(StoreError::NotFound) => {}
            Step::Remove(_) | Step::Write(..) | Step::Watch(..) | Step::Unwatch(..) => {
                reply?;
            }
        }
        Ok(Value::new())
    }

    fn check_guard(&self, reply: Result<&[u8], StoreError>) -> Result<(), StoreError> {
        let holds = |guard: &Guard, value: &str| guard.states.contains(&XenbusState::parse(value));
        match reply.and_then(xs::value) {
            Ok(value) if self.job.guard.as_ref().is_some_and(|guard| holds(guard, &value)) => Ok(()),
            // What cannot be read as a state is another state.
            Ok(_) | Err(StoreError::NotFound | StoreError::TooLong | StoreError::Malformed) => {
                Err(StoreError::Gone)
            }
            Err(error) => Err(error),
        }
    }
}
