use super::*;

#[test]
fn delete_is_always_possible() {
    for phase in Phase::ALL {
        assert!(
            !matches!(admit(phase, Action::Delete), Admission::Refuse(_)),
            "{phase}"
        );
    }
}

#[test]
fn starting_what_runs_and_stopping_what_is_stopped_succeed_at_once() {
    assert_eq!(admit(Phase::Running, Action::Start), Admission::AlreadyThere);
    assert_eq!(admit(Phase::Stopped, Action::Stop), Admission::AlreadyThere);
}

#[test]
fn nothing_but_delete_is_done_to_what_is_being_deleted() {
    for phase in [Phase::Deleting, Phase::Deleted] {
        for action in Action::ALL {
            let expected = action == Action::Delete;
            assert_eq!(
                admit(phase, action) == Admission::AlreadyThere,
                expected,
                "{phase} {action}"
            );
        }
    }
}

#[test]
fn what_succeeded_would_be_admitted_as_already_there() {
    for phase in Phase::ALL {
        for action in [Action::Start, Action::Stop, Action::Delete] {
            if admit(phase, action) == Admission::Run {
                assert_eq!(admit(action.phase_after(phase), action), Admission::AlreadyThere);
            }
        }
    }
}

#[test]
fn every_status_is_reached_by_a_phase() {
    for status in Status::ALL {
        assert!(Phase::ALL.iter().any(|p| p.status() == status));
        assert_eq!(Status::parse(status.as_str()), Some(status));
    }
}

#[test]
fn phases_that_an_operation_owns_are_left_alone() {
    for phase in [
        Phase::Deploying,
        Phase::Restarting,
        Phase::Stopping,
        Phase::Deleting,
    ] {
        for desired in [Desired::Running, Desired::Stopped, Desired::Deleted] {
            for seen in [
                Seen::Absent,
                Seen::Created,
                Seen::Up,
                Seen::Ended { clean: false },
            ] {
                assert_eq!(observe(phase, desired, seen), Reaction::Keep);
            }
        }
    }
}

/// One letter per action: `+` it runs, `=` it is so already, `-` it is refused.
fn row(phase: Phase) -> String {
    let letter = |action| match admit(phase, action) {
        Admission::Run => '+',
        Admission::AlreadyThere => '=',
        Admission::Refuse(_) => '-',
    };
    Action::ALL.into_iter().map(letter).collect()
}

#[test]
fn every_action_in_every_phase_is_judged_as_written_here() {
    //   create start stop restart update delete, then a snapshot's create restore delete
    for (phase, expected) in [
        (Phase::Queued, "+++--+---"),
        (Phase::Deploying, "-=++-+--+"),
        (Phase::Running, "-=+++++++"),
        (Phase::Restarting, "-=++-+--+"),
        (Phase::Stopping, "-+=--+--+"),
        (Phase::Stopped, "-+=--++++"),
        (Phase::Failed, "-++--+-++"),
        (Phase::Error, "-+++-+-++"),
        (Phase::Deleting, "-----=---"),
        (Phase::Deleted, "-----=---"),
    ] {
        assert_eq!(row(phase), expected, "{phase}");
    }
}

const SEEN: [Seen; 6] = [
    Seen::Absent,
    Seen::Created,
    Seen::Up,
    Seen::Ended { clean: true },
    Seen::Ended { clean: false },
    Seen::WentDownWithHost,
];

#[test]
fn what_runs_is_brought_up_again_after_the_host_and_what_does_not_is_taken_down() {
    for (phase, expected) in [
        (
            Phase::Running,
            [
                Reaction::BringUp,
                Reaction::BringUp,
                Reaction::Keep,
                Reaction::Becomes(Phase::Stopped),
                Reaction::Becomes(Phase::Error),
                Reaction::BringUp,
            ],
        ),
        (
            Phase::Stopped,
            [
                Reaction::Keep,
                Reaction::Keep,
                Reaction::TakeDown,
                Reaction::Keep,
                Reaction::Keep,
                Reaction::Keep,
            ],
        ),
    ] {
        for desired in [Desired::Running, Desired::Stopped] {
            assert_eq!(
                SEEN.map(|seen| observe(phase, desired, seen)),
                expected,
                "{phase}"
            );
        }
    }
    for seen in SEEN {
        let gone = seen == Seen::Absent;
        let expected = if gone { Reaction::Keep } else { Reaction::Remove };
        assert_eq!(observe(Phase::Deleted, Desired::Deleted, seen), expected);
    }
    assert_eq!(
        observe(Phase::Error, Desired::Running, Seen::Up),
        Reaction::Becomes(Phase::Running)
    );
}

#[test]
fn a_reaction_settles_what_was_seen() {
    for phase in Phase::ALL {
        for desired in [Desired::Running, Desired::Stopped, Desired::Deleted] {
            for seen in SEEN {
                if let Reaction::Becomes(next) = observe(phase, desired, seen) {
                    assert_ne!(next, phase);
                    assert_eq!(observe(next, desired, seen), Reaction::Keep, "{phase} {seen:?}");
                }
            }
        }
    }
}

#[test]
fn capacity_is_held_from_the_way_up_to_the_end_of_the_way_down() {
    for action in Action::ALL {
        for before in Phase::ALL {
            if action.phase_during(before) != before {
                assert!(action.phase_during(before).takes_capacity(), "{action}");
            }
        }
        let after = action.phase_after(Phase::Running);
        assert_eq!(after.takes_capacity(), after == Phase::Running, "{action}");
    }
}

#[test]
fn what_an_action_desires_is_where_it_leads() {
    for action in Action::ALL {
        let after = action.phase_after(Phase::Error);
        let expected = match after {
            Phase::Running => Some(Desired::Running),
            Phase::Stopped => Some(Desired::Stopped),
            Phase::Deleted => Some(Desired::Deleted),
            _ => None,
        };
        assert_eq!(action.desires(), expected, "{action}");
        assert!(
            !(action.overtakes() && action.is_cancellable()),
            "{action} overtakes and would be overtaken"
        );
    }
}

#[test]
fn words_are_written_as_json_writes_them() {
    for action in Action::ALL {
        assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
    }
    for status in Status::ALL {
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    assert_eq!(Status::parse("Running"), None);
}
