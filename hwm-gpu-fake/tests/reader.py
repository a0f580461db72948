"""Reads every card with NVIDIA's own Python binding, and prints what it saw as JSON.

Makes one slice and removes it, and prints the refusals that it met on the way.
"""

import json
import sys
from ctypes import c_uint, byref

import pynvml as nv


def refusal(call, *arguments):
    try:
        call(*arguments)
    except nv.NVMLError as error:
        return error.value
    return None


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def profiles(device):
    found = []
    for constant in range(nv.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = nv.nvmlDeviceGetGpuInstanceProfileInfo(device, constant, version=2)
        except nv.NVMLError:
            continue
        count = c_uint()
        nv.nvmlDeviceGetGpuInstancePossiblePlacements(device, info.id, None, byref(count))
        places = (nv.c_nvmlGpuInstancePlacement_t * count.value)()
        nv.nvmlDeviceGetGpuInstancePossiblePlacements(device, info.id, places, byref(count))
        found.append(
            {
                "id": info.id,
                "constant": constant,
                "name": text(info.name),
                "slices": info.sliceCount,
                "max": info.instanceCount,
                "mib": info.memorySizeMB,
                "decoders": info.decoderCount,
                "places": [[p.start, p.size] for p in places],
                "remaining": nv.nvmlDeviceGetGpuInstanceRemainingCapacity(device, info.id),
            }
        )
    return found


def whole_compute(instance):
    best = None
    for constant in range(nv.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            best = nv.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, constant, 0, version=1)
        except nv.NVMLError:
            continue
    return best


def a_slice(device, profile):
    """Makes the first profile at its first place, looks at it, meets every refusal, and removes it."""
    place = nv.c_nvmlGpuInstancePlacement_t()
    place.start, place.size = profile["places"][0]
    instance = nv.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile["id"], byref(place))
    overlap = refusal(nv.nvmlDeviceCreateGpuInstanceWithPlacement, device, profile["id"], byref(place))
    compute = nv.nvmlGpuInstanceCreateComputeInstance(instance, whole_compute(instance).id)
    mig = nv.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    info = nv.nvmlGpuInstanceGetInfo(instance)
    seen = {
        "overlap": overlap,
        "in_use": refusal(nv.nvmlGpuInstanceDestroy, instance),
        "uuid": text(nv.nvmlDeviceGetUUID(mig)),
        "name": text(nv.nvmlDeviceGetName(mig)),
        "memory": nv.nvmlDeviceGetMemoryInfo(mig).total,
        "attributes_mib": nv.nvmlDeviceGetAttributes(mig).memorySizeMB,
        "ids": [nv.nvmlDeviceGetGpuInstanceId(mig), info.id],
        "place": [info.placement.start, info.placement.size],
        "is_mig": nv.nvmlDeviceIsMigDeviceHandle(mig),
        "utilization": refusal(nv.nvmlDeviceGetUtilizationRates, mig),
        "parent_utilization": refusal(nv.nvmlDeviceGetUtilizationRates, device),
    }
    nv.nvmlComputeInstanceDestroy(compute)
    nv.nvmlGpuInstanceDestroy(instance)
    seen["stale"] = refusal(nv.nvmlGpuInstanceGetInfo, instance)
    return seen


def main():
    nv.nvmlInit()
    cards = []
    for index in range(nv.nvmlDeviceGetCount()):
        device = nv.nvmlDeviceGetHandleByIndex(index)
        found = profiles(device)
        cards.append(
            {
                "uuid": text(nv.nvmlDeviceGetUUID(device)),
                "name": text(nv.nvmlDeviceGetName(device)),
                "bus": text(nv.nvmlDeviceGetPciInfo(device).busId),
                "memory": nv.nvmlDeviceGetMemoryInfo(device).total,
                "memory_v2": nv.nvmlDeviceGetMemoryInfo(device, version=nv.nvmlMemory_v2).total,
                "mig": list(nv.nvmlDeviceGetMigMode(device)),
                "temperature": nv.nvmlDeviceGetTemperature(device, nv.NVML_TEMPERATURE_GPU),
                "processes": len(nv.nvmlDeviceGetComputeRunningProcesses(device)),
                "profiles": found,
                "slice": a_slice(device, found[0]),
            }
        )
    json.dump({"driver": text(nv.nvmlSystemGetDriverVersion()), "cards": cards}, sys.stdout, default=lambda number: number.value)
    nv.nvmlShutdown()


main()
