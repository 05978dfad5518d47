"""The name of a stage → its settings and its work: every command that writes a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam import (
    build_pairs,
    dpo,
    encode,
    evaluate,
    evaluate_generation,
    export,
    fit_recognizer,
    fit_units,
    fit_vocoder,
    generate,
    import_benchmark,
    import_model,
    import_units,
    pack,
    pretrain,
    probe_units,
    report,
    synthesize,
)
from slam.run import Run


@dataclass(frozen=True)
class Stage:
    """A command: its settings and its work."""

    config: type[Any]
    perform: Callable[[Any, Path], Run]


STAGES: Mapping[str, Stage] = {
    "build-pairs": Stage(build_pairs.BuildPairsConfig, build_pairs.build_pairs),
    "synthesize": Stage(synthesize.SynthesizeConfig, synthesize.synthesize),
    "fit-units": Stage(fit_units.FitUnitsConfig, fit_units.fit_units),
    "encode": Stage(encode.EncodeConfig, encode.encode),
    "probe-units": Stage(probe_units.ProbeUnitsConfig, probe_units.probe_units),
    "import-benchmark": Stage(import_benchmark.ImportBenchmarkConfig, import_benchmark.import_benchmark),
    "import-units": Stage(import_units.ImportUnitsConfig, import_units.import_units),
    "import-model": Stage(import_model.ImportModelConfig, import_model.import_model),
    "fit-recognizer": Stage(fit_recognizer.FitRecognizerConfig, fit_recognizer.fit_recognizer),
    "fit-vocoder": Stage(fit_vocoder.FitVocoderConfig, fit_vocoder.fit_vocoder),
    "pack": Stage(pack.PackConfig, pack.pack),
    "pretrain": Stage(pretrain.PretrainConfig, pretrain.pretrain),
    "dpo": Stage(dpo.DpoConfig, dpo.dpo),
    "evaluate": Stage(evaluate.EvaluateConfig, evaluate.evaluate),
    "evaluate-generation": Stage(
        evaluate_generation.EvaluateGenerationConfig, evaluate_generation.evaluate_generation
    ),
    "generate": Stage(generate.GenerateConfig, generate.generate),
    "export": Stage(export.ExportConfig, export.export),
    "report": Stage(report.ReportConfig, report.report),
}
