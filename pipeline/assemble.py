"""What the workers report, put together into a manifest. Pure."""

from collections.abc import Iterator, Sequence

from cache_schema.findings import repairs_in
from cache_schema.manifest import (
    SCHEMA_VERSION,
    CaseRecord,
    Manifest,
    PartitionRecord,
    Quarantined,
    Repair,
    Superseded,
    count_client,
    count_cohorts,
    count_leakage,
    find_duplicates,
)
from cache_schema.vocabulary import LABEL_CONVENTION, MODALITIES
from pipeline.plan import Plan
from pipeline.shard_task import ShardOutcome


def assemble_manifest(plan: Plan, outcomes: Sequence[ShardOutcome]) -> Manifest:
    """Describe a finished cache.

    Args:
        plan: What was to be done.
        outcomes: What was done, in any order.

    Returns:
        The manifest; its lists are sorted, so that it does not depend on who finished first.
    """
    synthetic = {case.case_id: case.is_synthetic for case in plan.cases}
    stored = (case for outcome in outcomes for case in outcome.cases)
    cases = tuple(
        case.model_copy(update={"synthetic": synthetic[case.case_id]})
        for case in sorted(stored, key=lambda case: case.case_id)
    )
    excluded = [
        Quarantined(case_id=case.case_id, cohort=case.cohort, reason=reason, key=None)
        for case, reason in plan.excluded
    ]
    quarantined = [*excluded, *(entry for outcome in outcomes for entry in outcome.quarantined)]
    shards = [outcome.shard for outcome in outcomes if outcome.shard is not None]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        label_convention=LABEL_CONVENTION,
        modalities=MODALITIES,
        fingerprint=plan.preprocessing.fingerprint,
        plane=plan.preprocessing.plane,
        options=plan.options,
        cohorts=count_cohorts(cases),
        cases=cases,
        shards=tuple(sorted(shards, key=lambda shard: shard.path)),
        partition=_partition_record(plan, cases),
        leakage=count_leakage(cases, plan.options.protocol),
        repairs=tuple(_repairs(plan, cases)),
        quarantined=tuple(sorted(quarantined, key=lambda entry: entry.case_id)),
        superseded=tuple(
            Superseded(case_id=case.case_id, cohort=case.cohort, patient_id=case.patient_id)
            for case in plan.superseded
        ),
        synthetic=any(case.synthetic for case in cases),
    )


def _repairs(plan: Plan, cases: Sequence[CaseRecord]) -> Iterator[Repair]:
    """List what was mended in the names of files, and then in what they say, case by case."""
    findings = {case.case_id: case.findings for case in cases}
    for case in plan.cases:
        inside = repairs_in(findings.get(case.case_id, ()))
        for action in (*case.repairs, *inside):
            yield Repair(case_id=case.case_id, action=action)


def _partition_record(plan: Plan, cases: Sequence[CaseRecord]) -> PartitionRecord:
    return PartitionRecord(
        q=dict(plan.partition.q),
        sizes=tuple(len(patients) for patients in plan.partition.patients),
        repairs=plan.partition.repairs,
        clients=tuple(count_client(client, cases) for client in range(plan.options.clients)),
        duplicates=find_duplicates(cases),
    )
