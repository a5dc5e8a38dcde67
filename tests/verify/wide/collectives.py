"""What vLLM's communicator for CPUs lacks for experts on several ranks, by gloo's all-reduce. Loaded by vLLM as a plugin: see
`hosts.plugin`."""

import torch


def register() -> None:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def sizes_of(self, rows, sizes):
        return sizes or [rows] * self.world_size

    def all_gatherv(self, input_, dim=0, sizes=None):
        if isinstance(input_, list):
            return [all_gatherv(self, one, dim, sizes) for one in input_]
        sizes = sizes_of(self, input_.shape[0], sizes)
        begin = sum(sizes[:self.rank_in_group])
        whole = torch.zeros((sum(sizes), *input_.shape[1:]), dtype=input_.dtype)
        whole[begin:begin + input_.shape[0]] = input_
        torch.distributed.all_reduce(whole, group=self.device_group)
        return whole

    def reduce_scatterv(self, input_, dim=-1, sizes=None):
        sizes = sizes_of(self, input_.shape[0] // self.world_size, sizes)
        begin = sum(sizes[:self.rank_in_group])
        whole = input_.clone()
        torch.distributed.all_reduce(whole, group=self.device_group)
        return whole[begin:begin + sizes[self.rank_in_group]].clone()

    def reduce_scatterv_into_output(self, input_, output, dim=-1, sizes=None):
        output.copy_(reduce_scatterv(self, input_, dim, sizes))
        return output

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv
    CpuCommunicator.reduce_scatterv_into_output = reduce_scatterv_into_output
