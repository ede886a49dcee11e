//! PD, which knows where everything is and what time it is.
//!
//! Job: finds the member that leads, among all that are named or were heard of, and asks that one. All are asked at once, so that one that is away or
//! stands still holds nobody up, and one counts as the leader only if it says so itself.
//!
//! Invariant: only one cluster is ever spoken to. A call is tried again until its deadline: everything that is asked of PD may be asked twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;

use super::channel::{Connector, Line};
use super::rpc::{self, Failure, PdRpc};
use super::{ATTEMPT_TIMEOUT, Backoff, unavailable};
use crate::generated::pdpb::{self, ErrorType, GetMembersRequest, GetMembersResponse, Member};

/// How long a member is asked who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// PD.
#[derive(Debug)]
pub(crate) struct Pd {
    connector: Arc<Connector>,
    /// The members that the operator has named.
    named: Vec<String>,
    state: Mutex<State>,
    /// Held by the one who looks for the leader.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// 0 until it is known.
    cluster_id: u64,
    /// The members that were heard of last.
    heard_of: Vec<String>,
    leader: Option<Arc<Line>>,
    lines: HashMap<String, Arc<Line>>,
}

/// The member that leads, and the connection to it.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) channel: Channel,
    pub(crate) header: pdpb::RequestHeader,
    line: Arc<Line>,
    generation: u64,
}

impl Pd {
    pub(crate) fn new(connector: Arc<Connector>, named: Vec<String>) -> Self {
        Self { connector, named, state: Mutex::default(), looking: tokio::sync::Mutex::default() }
    }

    /// Asks the leader until it answers.
    pub(crate) async fn ask<R: PdRpc>(&self, request: R, deadline: Instant) -> Result<R::Answer, Cause> {
        let mut backoff = Backoff::new(deadline);
        loop {
            let leader = self.leader(deadline).await?;
            let mut request = request.clone();
            request.set_header(leader.header);
            let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let answer = rpc::unary(leader.channel.clone(), request, attempt_deadline).await;
            let why = match answer {
                Ok(mut answer) => match R::header(&mut answer).and_then(|header| header.error) {
                    None => return Ok(answer),
                    Some(error) if error.r#type() == ErrorType::Ok => return Ok(answer),
                    Some(error) if error.r#type() == ErrorType::EntryNotFound => {
                        return Err(Cause::Io(format!("PD: {}", error.message)));
                    }
                    Some(error) => error.message,
                },
                Err(failure) => {
                    // What is refused is mostly refused for not being the leader.
                    self.lost(&leader, !matches!(failure, Failure::Refused(_)));
                    failure.to_string()
                }
            };
            backoff.wait(Duration::ZERO, unavailable(format!("PD {}: {why}", leader.line.address()))).await?;
        }
    }

    /// The leader, looked for if it is not known.
    pub(crate) async fn leader(&self, deadline: Instant) -> Result<Leader, Cause> {
        let mut backoff = Backoff::new(deadline);
        let wait = self.looking.lock();
        let Ok(_looking) = timeout_at(deadline, wait).await else {
            return Err(unavailable("PD can't be reached: others wait for it already"));
        };
        loop {
            let why = match self.connected(deadline).await {
                Some(leader) => return Ok(leader),
                None => match self.look(deadline).await {
                    Ok(()) => continue,
                    Err(why) => why,
                },
            };
            backoff.wait(Duration::ZERO, unavailable(format!("PD can't be reached: {why}"))).await?;
        }
    }

    /// Gives up what is thought to be the leader, and the connection to it as well.
    pub(crate) fn lost(&self, leader: &Leader, is_broken: bool) {
        if is_broken {
            leader.line.give_up(Some(leader.generation));
        }
        let mut state = self.state.lock();
        if state.leader.as_ref().is_some_and(|line| Arc::ptr_eq(line, &leader.line)) {
            state.leader = None;
        }
    }

    /// Gives everything up, but not what is under way.
    pub(crate) fn renew(&self) {
        let mut state = self.state.lock();
        state.leader = None;
        for line in state.lines.values() {
            line.give_up(None);
        }
    }

    async fn connected(&self, deadline: Instant) -> Option<Leader> {
        let (line, cluster_id) = {
            let state = self.state.lock();
            (state.leader.clone()?, state.cluster_id)
        };
        match line.channel(&self.connector, deadline).await {
            Ok((channel, generation)) => {
                Some(Leader { channel, header: pdpb::RequestHeader { cluster_id }, line, generation })
            }
            Err(_) => {
                self.state.lock().leader = None;
                None
            }
        }
    }

    /// Asks all members at once, until one of those that they name says that it leads.
    async fn look(&self, deadline: Instant) -> Result<(), String> {
        let heard_of = self.state.lock().heard_of.clone();
        let mut members = self.named.clone();
        members.extend(heard_of.into_iter().filter(|address| !self.named.contains(address)));
        let mut answers: FuturesUnordered<_> =
            members.iter().map(|address| self.ask_member(address, deadline)).collect();
        let mut last = "no member is named".to_owned();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((line, answer)) => match self.settle(line, answer, deadline).await {
                    Ok(()) => return Ok(()),
                    Err(why) => last = why,
                },
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    /// Takes a member's word for who leads, if that one says the same.
    async fn settle(&self, line: Arc<Line>, answer: GetMembersResponse, deadline: Instant) -> Result<(), String> {
        let leader = answer.leader.as_ref().filter(|leader| leader.member_id != 0);
        let leader = leader.ok_or_else(|| format!("{} knows of no leader", line.address()))?;
        let mut last = format!("the leader {} has no address", leader.name);
        for address in addresses(leader) {
            let (line, answer) = if line.address() == address {
                (line.clone(), answer.clone())
            } else {
                match self.ask_member(&address, deadline).await {
                    Ok(answer) => answer,
                    Err(why) => {
                        last = why;
                        continue;
                    }
                }
            };
            if answer.leader.as_ref().is_some_and(|itself| itself.member_id == leader.member_id) {
                return self.found(line, &answer);
            }
            last = format!("{address} does not lead");
        }
        Err(last)
    }

    fn found(&self, line: Arc<Line>, answer: &GetMembersResponse) -> Result<(), String> {
        let cluster_id = answer.header.as_ref().map_or(0, |header| header.cluster_id);
        let mut state = self.state.lock();
        if state.cluster_id != 0 && state.cluster_id != cluster_id {
            return Err(format!("{} belongs to another cluster than before", line.address()));
        }
        state.cluster_id = cluster_id;
        state.heard_of = answer.members.iter().flat_map(addresses).collect();
        let (named, heard_of) = (&self.named, state.heard_of.clone());
        state.lines.retain(|address, _| named.contains(address) || heard_of.contains(address));
        state.leader = Some(line);
        Ok(())
    }

    async fn ask_member(&self, address: &str, deadline: Instant) -> Result<(Arc<Line>, GetMembersResponse), String> {
        let line = self.line(address);
        let within = deadline.min(Instant::now() + ASK_TIMEOUT);
        let (channel, generation) = line.channel(&self.connector, within).await.map_err(|cause| cause.to_string())?;
        match rpc::unary(channel, GetMembersRequest::default(), within).await {
            Ok(answer) => match answer.header.as_ref().and_then(|header| header.error.as_ref()) {
                Some(error) if error.r#type() != ErrorType::Ok => Err(format!("{address}: {}", error.message)),
                _ => Ok((line, answer)),
            },
            Err(failure) => {
                line.give_up(Some(generation));
                Err(format!("{address}: {failure}"))
            }
        }
    }

    fn line(&self, address: &str) -> Arc<Line> {
        let mut state = self.state.lock();
        state.lines.entry(address.to_owned()).or_insert_with(|| Arc::new(Line::new(address.to_owned()))).clone()
    }
}

/// Where clients reach a member, as host and port.
fn addresses(member: &Member) -> impl Iterator<Item = String> {
    let bare = |url: &String| {
        let address = url.split_once("://").map_or(url.as_str(), |(_, address)| address);
        address.trim_end_matches('/').to_owned()
    };
    member.client_urls.iter().map(bare)
}
