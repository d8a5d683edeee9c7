"""AReaL imports this tracker of experiments; no test tracks any."""


class SummaryWriter: ...
