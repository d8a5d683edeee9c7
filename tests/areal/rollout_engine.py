"""AReaL's own vLLM engine in front of the tests' token server, a workflow, and an agent that speaks to a proxy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from areal.api import ModelRequest, RolloutWorkflow
from areal.api.cli_args import GenerationHyperparameters
from areal.engine.vllm_remote import RemotevLLMEngine, VLLMBackend
from areal.infra.remote_inf_engine import RemoteInfEngine
from openai import AsyncOpenAI

from tests.areal import token_server


class TokenBackend(VLLMBackend):
    def launch_server(self, server_args: dict[str, Any]) -> subprocess.Popen[bytes]:
        where = [str(server_args["host"]), str(server_args["port"])]
        return subprocess.Popen([sys.executable, str(Path(token_server.__file__)), *where])


class TokenEngine(RemotevLLMEngine):
    def __init__(self, config: Any) -> None:
        self.config, self._engine = config, RemoteInfEngine(config, TokenBackend())


class Guess(RolloutWorkflow):
    """Rewards the answer for how much of it is `token`; rejects data that says so."""

    def __init__(self, token: int, length: int = 6) -> None:
        self.token, self.length = token, length

    async def arun_episode(self, engine: Any, data: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        if data.get("reject"):
            return None
        gconfig = GenerationHyperparameters(max_new_tokens=self.length)
        answer = await engine.agenerate(ModelRequest(input_ids=[data["prompt"]] * 3, gconfig=gconfig))
        ids, prompt = answer.input_tokens + answer.output_tokens, [0] * answer.input_len
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.bool),
            "loss_mask": torch.tensor([prompt + [1] * answer.output_len]),
            "logprobs": torch.tensor([[0.0] * len(prompt) + answer.output_logprobs]),
            "versions": torch.tensor([[-1] * len(prompt) + answer.output_versions]),
            "rewards": torch.tensor([answer.output_tokens.count(self.token) / self.length]),
        }


class Talker:
    """An agent: any class with an async `run`. It knows only an OpenAI client."""

    async def run(self, data: dict[str, Any], **extra: Any) -> float:
        client = AsyncOpenAI(base_url=extra["base_url"], api_key=extra["api_key"], http_client=extra["http_client"])
        messages: Any = [{"role": "user", "content": data["say"]}]
        said = await client.chat.completions.create(model="default", messages=messages, max_completion_tokens=5)
        return float(len(said.choices) == 1)
