import numpy as np, torch
from evaluators.attacks.native import *
from evaluators.attacks.fast.ascents import UNTARGETED, Ascents, Ends, ascend
from evaluators.attacks.fast.progress import Progress
from evaluators.attacks.fast.rounds import *
from evaluators.attacks.autoattack.malt import target_order
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.ascent.balls import BALLS
from dgad_tk.ascent.losses import margin
from dgad_tk.ascent.directions import finite
from evaluators.attacks.autoattack.seats import even

TARGETS = 9

class Lab(NativeAttack):
    log=None
    def search(self, x, y, index):
        self.x, self.y, self.index = x, y, index
        self.ball = BALLS[self.norm](self.eps)
        with torch.no_grad():
            logits = torch.cat([self.victim.logits(p) for p in x.split(self.batch_size)])
        clean = margin(logits, y)
        targets = target_order(self.victim, x, y, self.norm, TARGETS, batch_size=self.batch_size)
        self.progress = p = Progress.begin(x, clean, targets)
        p.broken |= clean <= 0
        for r in (FIRST, *EACH): self.round(r)
        for k in range(RESTARTS):
            if len(p.left)==0: break
            self.round(restart(k))
        return p.point

    def round(self, r):
        p = self.progress; left = p.left; before = p.lead.clone()
        ranks = [k for k in r.ranks if k < p.targets.shape[1]]
        if r.restart: ts=[p.best_targets(left,k) for k in ranks]
        elif ranks: ts=[p.targets[left,k] for k in ranks]
        else: ts=[torch.full_like(left,UNTARGETED)]
        image=left.repeat(len(ts)); target=torch.cat(ts) if ts else left
        job=torch.arange(len(ts)).repeat_interleave(len(left))
        size=even(len(image),self.batch_size)
        for a in range(0,len(image),size):
            i,t,j=(v[a:a+size] for v in (image,target,job))
            ok=~p.broken[i]; i,t,j=i[ok],t[ok],j[ok]
            if len(i)==0: continue
            s=self.start(r,i,t,j)
            e=ascend(self.victim,Ascents(i,self.x[i],self.y[i],t,s),norm=self.norm,eps=self.eps,steps=r.steps)
            p.record(i,t,e)
        if self.log: self.log(r,p,before,left)
        if r.restart: p.settle(before)

    def start(self,r,i,t,j):
        x=self.x[i]
        if r.start=='clean': return x
        if r.start=='best': return self.progress.point[i]
        kind='uniform' if self.norm=='linf' else 'normal'
        noise=torch.empty_like(x)
        for each in j.unique():
            rows=(j==each).nonzero()[:,0]
            noise[rows]=draw_noise(self.draws,'fast '+r.name,tuple(x.shape[1:]),self.index[i[rows]],kind,epoch=int(each))
        s=self.ball.project(self.ball.random_point(x,lambda k:noise),x)
        if r.start=='spread':
            w=torch.empty(len(i),self.estimator.nb_classes)
            for each in j.unique():
                rows=(j==each).nonzero()[:,0]
                w[rows]=2*self.draws.uniform('fast weights '+r.name,(w.shape[1],),index=self.index[i[rows]],epoch=int(each))-1
            w.scatter_(1,self.y[i][:,None],-w.gather(1,self.y[i][:,None]).abs())
            for _ in range(SPREAD):
                s=s.detach().requires_grad_()
                g,=torch.autograd.grad((self.victim.logits(s)*w).sum(),s)
                s=self.ball.project(self.ball.step(s.detach(),finite(g),self.eps),x)
        return s
